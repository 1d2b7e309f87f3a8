#!/usr/bin/env bash
# A cluster of one node to try podmgr on: k3s, server and node in one, with the example of config.yml.
#
#   sudo k3s/run.sh             start it (k3s is downloaded if it is not installed), wait until the
#                               node is Ready, and apply config.yml
#   sudo k3s/run.sh stop        stop the server and its pods
#   sudo k3s/run.sh uninstall   stop, and remove all that this script has brought here
#
# What was here before stays: an installed k3s is used and kept, a running one is neither started
# nor stopped, and a cluster's data are removed only if the cluster was made by this script.
set -euo pipefail

# A release, and the SHA-256 of its two files as its own sha256sum-amd64.txt and sha256sum-arm64.txt
# name them. With another K3S_VERSION in the environment those lists themselves are downloaded,
# which proves no more than that the file arrived whole.
pinned=v1.36.4+k3s1
declare -A sha256=(
    [amd64]=835873f37245fc615f547a2fe2af9402a347875f13fa64a1f136de644955ea3f
    [arm64]=c920706346d5ad4e5cd3c7bf1bb09ce71ebe07fec829e513e40f1caf98aed8bb
)
version=${K3S_VERSION:-$pinned}
releases=https://github.com/k3s-io/k3s/releases/download

root=${PODMGR_K3S_ROOT:-} # where tests have their / ; nothing outside of it is touched
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
binary=$root/usr/local/bin/k3s
kubeconfig=$root/etc/rancher/k3s/k3s.yaml
data=$root/var/lib/rancher/k3s
# What a k3s server keeps, besides its kubeconfig.
folders=("$data" "$root"/etc/rancher/{k3s,node} "$root"/var/lib/{kubelet,cni} "$root"/run/{k3s,flannel})
# Of ours: process, log, whether the binary is, and which folders are.
state=$root/var/lib/podmgr-k3s
log=$state/k3s.log
ready_seconds=${K3S_READY_SECONDS:-300}

say() { echo "run.sh: $*" >&2; }
die() {
    echo "error: $1" >&2
    [ -z "${2:-}" ] || echo "tip: $2" >&2
    exit 1
}

require_root() {
    [ "$(id -u)" = 0 ] || die "k3s needs root" "sudo $0 ${1:-}"
}

architecture() {
    case $(uname -m) in
    x86_64 | amd64) echo amd64 ;;
    aarch64 | arm64) echo arm64 ;;
    *) die "k3s/run.sh knows amd64 and arm64, not $(uname -m)" "install k3s yourself; it is used then" ;;
    esac
}

# The k3s to use: the one on the PATH, or ours.
find_k3s() {
    PATH=$PATH:$(dirname "$binary") command -v k3s || true
}

kubectl() {
    "$(find_k3s)" kubectl --kubeconfig "$kubeconfig" "$@"
}

download() { # URL FILE
    local code=0 how=(--silent --show-error)
    if [ -t 2 ]; then how=(--progress-bar); fi
    curl --fail "${how[@]}" --location --proto =https --connect-timeout 15 --retry 2 --output "$2" "$1" ||
        code=$?
    [ "$code" = 0 ] || give_up "cannot download $1 (curl: $code)" "is there a network? or install k3s yourself"
}

give_up() { # as `die`, and leave nothing of an installation
    rm -f "$binary.new" "$state/sums"
    rmdir "$state" 2>/dev/null || true
    die "$@"
}

install_k3s() {
    local arch file staging expected
    arch=$(architecture)
    command -v curl >/dev/null || die "curl is not installed" "apt-get install curl, or install k3s yourself"
    [ -e "$root/sys/fs/cgroup/cgroup.controllers" ] ||
        die "k3s $version needs cgroup v2 alone, and here is v1 too" "boot with systemd.unified_cgroup_hierarchy=1"
    file=k3s
    [ "$arch" = amd64 ] || file=k3s-$arch
    mkdir -p "$state" "$(dirname "$binary")"
    staging=$binary.new
    say "downloading k3s $version for $arch"
    download "$releases/${version//+/%2B}/$file" "$staging"
    if [ "$version" = "$pinned" ]; then
        expected=${sha256[$arch]}
    else
        say "K3S_VERSION=$version is not pinned here: its hash comes from the release itself"
        download "$releases/${version//+/%2B}/sha256sum-$arch.txt" "$state/sums"
        expected=$(awk -v file="$file" '$2 == file || $2 == "*" file {print $1}' "$state/sums")
    fi
    [ "$(sha256sum "$staging" | cut -d ' ' -f 1)" = "$expected" ] ||
        give_up "what was downloaded is not k3s $version: its SHA-256 is not ${expected:-in the list}" \
            "try again; if it stays so, something on the way changes downloads"
    chmod 755 "$staging"
    touch "$state/made-binary" # first: a file that is not removed is worse than a note without one
    mv "$staging" "$binary"
    say "installed $binary"
}

# The process that we started, if it still runs; a later one with its number is another.
server_pid() {
    local pid started
    [ -e "$state/pid" ] || return 1
    read -r pid started <"$state/pid"
    [ -n "$started" ] && [ "$(start_time "$pid")" = "$started" ] && echo "$pid"
}

# Of a living process. The 22nd field of stat; the second, in parentheses, may hold blanks.
start_time() {
    sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | awk '$1 != "Z" {print $20}'
}

is_answering() {
    [ -e "$kubeconfig" ] && kubectl --request-timeout=5s get --raw=/readyz >/dev/null 2>&1
}

start_server() {
    local k3s pid folder
    k3s=$(find_k3s)
    mkdir -p "$state"
    if [ ! -e "$state/made-folders" ]; then
        for folder in "${folders[@]}"; do [ -e "$folder" ] || echo "$folder"; done >"$state/made-folders"
    fi
    say "starting $k3s server; its log is $log"
    setsid "$k3s" server --write-kubeconfig-mode 600 </dev/null >>"$log" 2>&1 &
    pid=$!
    echo "$pid $(start_time "$pid")" >"$state/pid"
}

# One line for each change, so that waiting is not silence.
wait_for_node() {
    local before='' now ready=''
    SECONDS=0
    while [ -z "$ready" ]; do
        if [ "${1:-}" = ours ] && ! server_pid >/dev/null; then
            tail -n 15 "$log" >&2
            die "k3s has ended; the lines above are the last of $log" "k3s check-config shows what is missing"
        fi
        if is_answering; then
            now=$(kubectl get nodes -o \
                'jsonpath={range .items[*]}{.metadata.name} {.status.conditions[?(@.type=="Ready")].status}{"\n"}{end}' \
                2>/dev/null || true)
            ready=$(awk '$2 == "True" {print $1; exit}' <<<"$now")
            now="the API server answers; ${now:+node }${now:-no node yet}"
        else
            now="waiting for the API server"
        fi
        if [ -z "$ready" ]; then
            [ "$now" = "$before" ] || say "$now (${SECONDS} s)"
            before=$now
            [ "$SECONDS" -lt "$ready_seconds" ] ||
                die "no node is Ready after $ready_seconds s" "the log is $log; $0 stop"
            sleep 1
        fi
    done
    say "node $ready is Ready after $SECONDS s"
}

start() {
    local whose=''
    require_root
    if [ -z "$(find_k3s)" ]; then install_k3s; fi
    if server_pid >/dev/null; then
        say "the server runs already"
        whose=ours
    elif is_answering; then
        say "another k3s runs here already; using it"
    else
        start_server
        whose=ours
    fi
    trap 'say "the server goes on; to stop it: sudo $0 stop"; exit 130' INT TERM
    wait_for_node "$whose"
    kubectl apply -f "$here/config.yml"
    cat <<END

k3s is ready; its kubeconfig, $kubeconfig, is where podmgr looks for one.
  sudo k3s kubectl get pods -A        what runs there
  sudo podmgr watch                   puts the rules of the annotations on the pods
END
    if [ "$whose" = ours ]; then echo "  sudo $0 stop          stops it; or uninstall"; fi
}

stop() {
    local pid
    require_root stop
    if [ ! -e "$state/pid" ]; then
        say "no server of this script runs here"
        return
    fi
    if pid=$(server_pid); then
        say "stopping the server (process $pid)"
        kill "$pid"
        for _ in {1..300}; do
            server_pid >/dev/null || break
            sleep 0.1
        done
        if server_pid >/dev/null; then kill -9 "$pid"; fi
    fi
    # k3s leaves its pods running, for the next start; nobody would look after them here.
    PATH=$PATH:$data/current/bin:$data/current/bin/aux stop_pods
    rm -f "$state/pid"
    say "stopped"
}

stop_pods() {
    local exe path link tool pids=()
    for exe in /proc/[0-9]*/exe; do
        case $(readlink "$exe" 2>/dev/null || true) in
        "$data"/data/*/bin/containerd-shim*) mapfile -t -O "${#pids[@]}" pids < <(tree "${exe//[!0-9]/}") ;;
        esac
    done
    if [ "${#pids[@]}" -gt 0 ]; then
        say "ending ${#pids[@]} processes of pods"
        kill -9 "${pids[@]}" 2>/dev/null || true
    fi
    while read -r path; do
        umount -f "$path" 2>/dev/null || umount -l "$path" || true
    done < <(cut -d ' ' -f 2 /proc/self/mounts | grep -E "^$root/(run/k3s/|var/lib/kubelet/|run/netns/cni-)" | sort -r)
    rm -f "$root"/run/netns/cni-*
    find "$root"/sys/fs/cgroup/kubepods* -depth -type d -exec rmdir {} + 2>/dev/null || true
    for link in cni0 flannel.1 flannel-v6.1; do
        if ip link show "$link" >/dev/null 2>&1; then ip link delete "$link"; fi
    done
    for tool in iptables ip6tables; do
        if command -v "$tool-save" >/dev/null && command -v "$tool-restore" >/dev/null; then
            "$tool-save" | { grep -v -e KUBE- -e CNI- -e FLANNEL -e flanneld || true; } | "$tool-restore"
        fi
    done
}

tree() { # a process and all below it
    local child
    echo "$1"
    for child in $(cat "/proc/$1/task"/*/children 2>/dev/null || true); do tree "$child"; done
}

uninstall() {
    local folder
    require_root uninstall
    if ! is_made "$data" && [ -n "$(find_k3s)" ] && is_answering; then
        kubectl delete --ignore-not-found --wait=false -f "$here/config.yml"
    fi
    stop
    for folder in "${folders[@]}"; do
        if is_made "$folder"; then rm -rf --one-file-system "$folder"; fi
    done
    rmdir "$root/var/lib/rancher" "$root/etc/rancher" 2>/dev/null || true
    if [ -e "$state/made-binary" ]; then rm -f "$binary" "$binary.new"; fi
    rm -rf "$state"
    say "uninstalled"
}

is_made() { # whether a folder was not there before the first start
    grep -qsxF "$1" "$state/made-folders"
}

case ${1:-start} in
start) start ;;
stop) stop ;;
uninstall) uninstall ;;
-h | --help | help) sed -n '2,/^set /{/^set /d; s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" ;;
*) die "unknown command '$1'" "$0 [start|stop|uninstall]" ;;
esac
