#!/bin/sh
# The only program of the Linux dom0: starts Xen's toolstack, runs each guest of /pvmmu/jobs (lines
# "NUMBER SECONDS MIB COMMAND LINE"), and tells the harness about it on the console. Every line for the harness
# begins with @@pvmmu; boot/domu.rs reads them.
export PATH=/bin:/tools

say() { echo "@@pvmmu $*"; }

# The toolstack failed, which is no verdict on the guest: say what it said, and end.
give_up() {
    say "failed $1: $(echo "$2" | tr '\n' ' ')"
    cat /var/log/xen/*.log 2>/dev/null | tail -n 20
    poweroff -f
    sleep 1000
}

must() {
    say "step $1"
    step=$1
    shift
    words=$("$@" 2>&1) || give_up "$step" "$words"
}

uptime_seconds() {
    read -r uptime rest < /proc/uptime
    echo "${uptime%.*}"
}

# Sets state and reason as `xl list` has them. Under emulation xl itself crashes now and then.
look_at_guest() {
    for attempt in 1 2 3; do
        if words=$(xl list -v "$name" 2>&1); then
            # Name ID Mem VCPUs State Time UUID Reason-Code Security-Label
            set -- $(echo "$words" | tail -n 1)
            domain=$2 state=$5 reason=$8
            return
        fi
        say "note xl list failed ($attempt of 3): $words"
        sleep 1
    done
    give_up "xl list" "$words"
}

wait_for_guest() {
    deadline=$(($(uptime_seconds) + limit))
    while :; do
        look_at_guest
        examine_guest && return
        case $state in
        *c*) ending="crashed $reason" && return ;;
        *s*) ending="shutdown $reason" && return ;;
        esac
        if [ "$(uptime_seconds)" -ge "$deadline" ]; then
            ending="running $state"
            xenctx "$domain" 0 2>&1 | head -n 20
            return
        fi
        sleep 0.3
    done
}

run_guest() {
    number=$1 limit=$2 memory=$3 program=$4 name=guest$1 verdict=
    shift $(($# < 4 ? $# : 4))
    log=/var/log/xen/guest-$name.log
    # While it migrates a guest has another name.
    incoming=/var/log/xen/guest-$name--incoming.log
    : > "$log"
    : > "$incoming"
    # awk, as sed shows a line only when it has seen the next one. A last line without an end is
    # still a line: the sentinel then follows right behind it.
    mkfifo "/tmp/lines$number"
    tail -q -n +1 -f "$log" "$incoming" > "/tmp/lines$number" &
    follower=$!
    awk -v mark="@@pvmmu guest $number " '
        /^@@end$/ { exit }
        sub(/@@end$/, "") { print mark $0; exit }
        { print mark $0; fflush() }' < "/tmp/lines$number" &
    reader=$!
    case $program in
    # Somebody must start it again when it reboots.
    guest) must "xl create" xl create "/pvmmu/$number.cfg" ;;
    *) must "xl create" xl create -e "/pvmmu/$number.cfg" ;;
    esac
    say "started $number"
    case $program in
    guest) live_with_guest "$@" ;;
    *) wait_for_guest ;;
    esac
    sleep 0.3
    echo "@@end" >> "$log"
    wait "$reader"
    kill "$follower"
    [ -z "$verdict" ] || say "guest $number PVMMU-VERDICT $verdict"
    say "end $number $ending"
    must "xl destroy" xl destroy "$name"
}

. /pvmmu/examine.sh
. /pvmmu/session.sh

/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /run
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /run
mkdir -p /run/xen /run/xenstored /run/lock /etc/xen
: > /etc/xen/xl.conf
for module in xen-evtchn xen-gntdev xen-gntalloc xen-privcmd xenfs; do
    must "insmod $module" insmod "/modules/$module.ko"
done
must "mount xenfs" mount -t xenfs xenfs /proc/xen
must xenstored xenstored
must xen-init-dom0 xen-init-dom0
must xenconsoled xenconsoled --log=all --log-dir=/var/log/xen
set -f
while read -r job; do
    run_guest $job < /dev/null
done < /pvmmu/jobs
say "done"
poweroff -f
