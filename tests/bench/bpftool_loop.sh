#!/bin/bash
# What podmgr does, as a script: bpftool_loop.sh apply|change|clean TOOL LOOK PINS OLD NEW CGROUP...
#
# TOOL is bpftool, or echo, whose lines then are one batch. With LOOK yes the kernel is asked for each
# cgroup whether it is so. OLD and NEW are folders of objects called KIND-DIRECTION-DIGEST.bpf.o.
set -eu
action=$1 tool=$2 look=$3 pins=$4 old=$5 new=$6
shift 6

put() {
    for object in "$1"/*; do
        name=${object##*/} name=${name%.bpf.o} direction=${name#*-} direction=${direction%%-*}
        "$tool" prog load "$object" "$pod/$name" pinmaps "$pod/$name-maps"
        "$tool" cgroup attach "$cgroup" "$direction" pinned "$pod/$name" multi
    done
}

remove() {
    for object in "$1"/*; do
        name=${object##*/} name=${name%.bpf.o} direction=${name#*-} direction=${direction%%-*}
        "$tool" cgroup detach "$cgroup" "$direction" pinned "$pod/$name"
        [ "$tool" = echo ] || rm -r "$pod/$name" "$pod/$name-maps"
    done
}

each() {
    for cgroup; do
        pod=$pins/${cgroup##*/}
        case $action in
            apply)
                [ "$tool" = echo ] || mkdir "$pod"
                put "$old" ;;
            change)
                put "$new"
                remove "$old" ;;
            clean)
                remove "$new"
                [ "$tool" = echo ] || rmdir "$pod" ;;
        esac
        [ "$look" = no ] || bpftool cgroup show "$cgroup" > /dev/null
    done
}

if [ "$tool" = bpftool ]; then
    each "$@"
    exit
fi
[ "$action" != apply ] || mkdir "${@/#*\//$pins/}"
# bpftool 7.1 ends a batch with an error that it found in errno, though all went well.
each "$@" | bpftool batch file - || true
case $action in
    change)
        for object in "$old"/*; do
            name=${object##*/} name=${name%.bpf.o}
            rm -r "$pins"/*/"$name" "$pins"/*/"$name-maps"
        done ;;
    clean) rm -r "$pins"/* ;;
esac
