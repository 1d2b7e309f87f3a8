#!/bin/busybox sh
# The guest's very first program: reach the disks, put the root together, hand over to start.sh.
# Disks: vda the root, vdb the kernel's modules, vdc a tar archive with the checkout and the job.
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
while read -r module; do insmod "/modules/$module"; done </modules/order
mount -t ext4 /dev/vda /root
mkdir -p /root/usr/lib/modules
mount -t ext4 -o ro /dev/vdb /root/usr/lib/modules
tar -xf /dev/vdc -C /root
mount --move /dev /root/dev
exec switch_root /root /bin/bash /checkout/tests/vm/start.sh
