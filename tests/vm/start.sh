#!/bin/bash
# Runs as the guest's init: mounts what a Linux machine has, runs the job's command, reports, powers off.
# The host reads four virtio ports: "booted", "output" (stdout and stderr), "results" (tar of /results),
# "status".
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
mkdir -p /dev/pts /dev/shm /dev/net /results
mknod /dev/net/tun c 10 200 # who opens it loads the module
mount -t devpts -o ptmxmode=0666 devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
ln -s /proc/self/fd /dev/fd
ln -s /proc/self/fd/0 /dev/stdin
ln -s /proc/self/fd/1 /dev/stdout
ln -s /proc/self/fd/2 /dev/stderr
ip link set lo up

port() { # the device of a named virtio port; udev, which would make links, is not here
    local name
    name=$(grep -lx "$1" /sys/class/virtio-ports/*/name)
    basename "$(dirname "$name")"
}

mapfile -d '' -t environment </job/environment
mapfile -d '' -t command </job/command
cd /checkout || exit
echo booted >"/dev/$(port booted)"
# a port can be opened only once, so a pipe stands before it: the command may open /dev/stdout again
exec 3> >(exec cat >"/dev/$(port output)")
cat=$!
env -i "${environment[@]}" "${command[@]}" </dev/null >&3 2>&1
status=$?
exec 3>&-
(sleep 5 && kill "$cat") & # what the command left running may hold the pipe open
wait "$cat"
tar -c -C /results . >"/dev/$(port results)"
echo "$status" >"/dev/$(port status)"
echo o >/proc/sysrq-trigger
sleep 60
