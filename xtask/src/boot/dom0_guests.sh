# Runs guests under xl, each job of the file `jobs` ("NUMBER SECONDS MIB MAXIMUM COMMAND LINE"), and
# tells the harness about it on standard output. Every line for the harness begins with @@pvmmu;
# boot/domu.rs reads them. Whoever includes this file sets
#
#   here            the folder with all of this, and room for what comes
#   tag             the guests are named TAG.NUMBER
#   name_logs       sets log and incoming: files that hold what $name writes, and what it writes
#                   while it migrates and has another name
#   listen_to_guest, stop_listening
#                   are called when a guest has begun and before its log is closed
#   leave           ends it all

say() { echo "@@pvmmu $*"; }

# The toolstack failed, which is no verdict on the guest: say what it said, and end.
give_up() {
    say "failed $1: $(echo "$2" | tr '\n' ' ')"
    cat /var/log/xen/*.log 2>/dev/null | tail -n 20
    leave
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

# Sets state, reason and listed (MiB) as `xl list` has them. Under emulation xl itself crashes now and then.
look_at_guest() {
    for attempt in 1 2 3; do
        if words=$(xl list -v "$name" 2>&1); then
            # Name ID Mem VCPUs State Time UUID Reason-Code Security-Label
            set -- $(echo "$words" | tail -n 1)
            domain=$2 listed=$3 state=$5 reason=$8
            return
        fi
        say "note xl list failed ($attempt of 3): $words"
        sleep 1
    done
    give_up "xl list" "$words"
}

# A guest that measures how it is resized says which size it wants. It is on dom0's processor, and
# has nearly all of it for as long as it wants it.
measure_sizes() {
    must "xl sched-credit2" xl sched-credit2 -d "$name" -w 65535
    granted=
}

grant_size() {
    wants=$(awk '/^PVMMU-WANTS / { size = $2 } END { print size }' "$log")
    [ "$wants" = "$granted" ] && return
    granted=$wants
    must "xl mem-set" xl mem-set "$name" "${wants}k"
}

wait_for_guest() {
    deadline=$(($(uptime_seconds) + limit))
    case $program in sized-by-xl) measure_sizes ;; esac
    while :; do
        case $program in sized-by-xl) grant_size ;; esac
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
    number=$1 limit=$2 memory=$3 maximum=$4 program=$5 name=$tag.$1 verdict=
    shift $(($# < 5 ? $# : 5))
    sed "s|@here@|$here|; s|@name@|$name|" "$here/$number.template" > "$here/$number.cfg"
    name_logs
    : > "$log"
    : > "$incoming"
    # awk, as sed shows a line only when it has seen the next one. A last line without an end is
    # still a line: the sentinel then follows right behind it.
    mkfifo "$here/lines$number"
    tail -q -n +1 -f "$log" "$incoming" > "$here/lines$number" &
    follower=$!
    awk -v mark="@@pvmmu guest $number " '
        /^@@end$/ { exit }
        sub(/@@end$/, "") { print mark $0; exit }
        { print mark $0; fflush() }' < "$here/lines$number" &
    reader=$!
    case $program in
    # Somebody must start it again when it reboots.
    guest) must "xl create" xl create "$here/$number.cfg" ;;
    *) must "xl create" xl create -e "$here/$number.cfg" ;;
    esac
    say "started $number"
    listen_to_guest
    case $program in
    guest) live_with_guest "$@" ;;
    *) wait_for_guest ;;
    esac
    sleep 0.3
    stop_listening
    echo "@@end" >> "$log"
    wait "$reader"
    kill "$follower"
    [ -z "$verdict" ] || say "guest $number PVMMU-VERDICT $verdict"
    say "end $number $ending"
    must "xl destroy" xl destroy "$name"
}

. "$here/examine.sh"
. "$here/session.sh"

run_guests() {
    set -f
    while read -r job; do
        run_guest $job < /dev/null
    done < "$here/jobs"
    say "done"
}
