# A part of dom0_guests.sh: the life of a guest under xl. Its program is `guest`, and the words after
# it on its command line are what happens to it, in this order; `STEP*N` is a step N times. After each
# step the guest looks at all it has, and what it counts is compared with what Xen counts.

# Something is not as it should be: the verdict.
wrong() {
    echo "fail $step: $(echo "$*" | tr '\n' ' ')" > "$here/verdict"
    exit 1
}

# Runs a command of the toolstack, which must not refuse. Under emulation xl itself crashes now and
# then: that is said, and then the rest of the line decides, `again` or a test whether all is done.
toolstack() {
    crashed=$1
    shift
    words=$("$@" 2>&1)
    status=$?
    # Its own child's end it reports itself.
    case "$status $words" in 1[2-9]?" "* | *"due to fatal signal"*) status=crashed ;; esac
    if [ $status = crashed ]; then
        say "note $1 $2 crashed: $(echo "$words" | tail -n 1)"
        find_domain
        $crashed && return
        words=$("$@" 2>&1)
        status=$?
    fi
    [ $status = 0 ] || wrong "$*: status $status: $words"
}

again() {
    false
}

# Waits until a command succeeds; says so if it does not in time.
await() {
    what=$1
    shift
    deadline=$(($(uptime_seconds) + limit))
    until "$@"; do
        [ "$(uptime_seconds)" -lt $deadline ] || wrong "waited $limit s for $what"
        sleep 0.1
    done
}

# Searches all that the guest has said; after a move it has another console.
said() {
    cat "$log" "$incoming" | grep "$@"
}

# Sets domain. A guest that is restored or restarted has another number.
# An xl that crashes, as it does now and then under emulation, has said nothing of that.
find_domain() {
    for try in 1 2 3 4 5; do
        domain=$(xl domid "$name" 2>/dev/null)
        found=$?
        [ $found -lt 128 ] && break
    done
    [ $found -eq 0 ] && [ -n "$domain" ]
}

answered() {
    answer=$(xenstore read "/local/domain/$domain/data/answer" 2>/dev/null)
    [ "${answer%% *}" = "$asked" ]
}

# Has the guest look at all it has; sets answer.
ask() {
    find_domain || wrong "there is no $name"
    asked=$((asked + 1))
    toolstack again xenstore write "/local/domain/$domain/data/ask" "$asked $*"
    await "an answer to $asked" answered
    case $answer in
    "$asked ok "*) ;;
    *) wrong "the guest says: $answer" ;;
    esac
}

# Sets value to what follows KEY= in the answer.
pick() {
    value=${answer#* $1=}
    value=${value%% *}
}

# Pages of the domain, as Xen counts them.
pages_of_xen() {
    xl dmesg | awk -v head="General information for domain $domain:" '
        index($0, head) { seen = 1 }
        seen && match($0, /nr_pages=[0-9]+/) {
            pages = substr($0, RSTART + 9, RLENGTH - 9); seen = 0
        }
        END { print pages }'
}

xen_has_counted() {
    counted=$(pages_of_xen)
    [ -n "$counted" ]
}

# The guest is sound: it has as many pages as Xen told it.
look() {
    ask "$@"
    pick pages && pages=$value
    pick ram && ram=$value
    [ "$pages" = "$ram" ] || wrong "the guest has $ram pages, and Xen told it $pages"
}

# Besides, Xen and xl count its pages as it does when they are asked in dom0.
check() {
    look "$@"
    count
    say "guest $number $step: $answer"
}

count() {
    toolstack again xl dmesg -c
    toolstack again xl debug-keys q
    await "Xen's count of pages" xen_has_counted
    [ "$pages" = "$counted" ] || wrong "the guest has $pages pages, Xen counts $counted"
    look_at_guest
    [ "$listed" -eq $((pages / 256)) ] || wrong "the guest has $pages pages, xl lists $listed MiB"
}

# The guest's last words: all its pages and objects, looked at a last time, were sound.
ends_well() {
    said -q "^PVMMU-VERDICT pass $1, "
}

# The guest has this many pages: it is asked for nothing more.
has_pages() {
    ask size
    pick pages
    [ "$value" -eq "$1" ]
}

set_memory() {
    toolstack again xl mem-set "$name" "${1}m"
    await "$1 MiB" has_pages $(($1 * 256))
}

has_heap() {
    ask size
    pick heap
    heap=$value
    [ "$heap" -gt 0 ]
}

# The guest gives half of its memory away. Its heap, which grows with the guest, gets smaller, too.
step_shrink() {
    await "a heap" has_heap
    set_memory $((memory / 2))
    pick heap
    [ "$value" -lt "$heap" ] || wrong "its heap has $value KiB, it had $heap"
}

# It gets it back.
step_grow() {
    set_memory "$memory"
}

# As much as it may ever have: above its size at boot, if that is less.
step_maximum() {
    set_memory "$maximum"
}

step_mem_set() {
    step_shrink
    check
    step_grow
}

is_gone() {
    ! find_domain
}

# A restored guest runs, whatever became of the xl that restored it.
is_back() {
    find_domain || return
    look_at_guest
    case $state in *p*) xl unpause "$name" ;; esac
}

step_save() {
    toolstack is_gone xl save "$name" "$here/image"
    toolstack is_back xl restore "$here/image"
    rm -f "$here/image"
}

# To another domain through a pipe, in which nobody keeps it: a migration of a guest that rests. The
# second domain has another name until the first one is gone.
step_move() {
    find_domain && before=$domain
    mkfifo "$here/pipe"
    # It is to be as large as it was when it was looked at last.
    sed "s/^name = .*/name = \"$name--incoming\"/; s/^memory = .*/memory = $((pages / 256))/" \
        "$here/$number.cfg" > "$here/incoming.cfg"
    xl restore "$here/incoming.cfg" "$here/pipe" > "$here/moved" 2>&1 &
    mover=$!
    toolstack is_gone xl save "$name" "$here/pipe"
    wait $mover || wrong "xl restore: status $?: $(cat "$here/moved")"
    toolstack is_back xl rename "$name--incoming" "$name"
    rm -f "$here/pipe" "$here/moved"
    find_domain
    [ "$domain" != "$before" ] || wrong "it is still domain $before"
}

# It is saved and goes on where it is.
step_checkpoint() {
    toolstack again xl save -c "$name" "$here/image"
    rm -f "$here/image"
}

# To the same host, while it works. A Xen that was built without shadow paging cannot do that with
# any PV guest (Debian's since 4.17): it says so, and then the guest has to be where it was.
step_migrate() {
    find_domain && before=$domain
    words=$(xl migrate -s '' "$name" 'xl migrate-receive' 2>&1)
    status=$?
    find_domain || wrong "it is gone: $words"
    case "$status $words" in
    "0 "*) [ "$domain" != "$before" ] || wrong "it is still domain $before: $words" ;;
    *"enable logdirty: 95"*)
        [ "$domain" = "$before" ] || wrong "it is domain $domain: $words"
        say "guest $number $step: this Xen cannot migrate a running PV guest, which goes on: $words"
        step_move
        ;;
    *) wrong "xl migrate: status $status: $words" ;;
    esac
}

# Writes what no toolstack should, beside what one does; the guest lives and says what it thinks.
step_garbage() {
    find_domain
    path=/local/domain/$domain
    size=$(xenstore read "$path/memory/target")
    for garbage in "" -1 12x 0x4000 99999999999999999999999; do
        toolstack again xenstore write -- "$path/memory/target" "$garbage"
        ask size
        pick pages
        [ "$value" = $((size / 4)) ] || wrong "with the target $garbage it has $value pages"
        toolstack again xenstore write -- "$path/control/shutdown" "$garbage"
        toolstack again xenstore write -- "$path/control/sysrq" "$garbage"
    done
    await "words about them" said -q "^memory/target: .*the guest stays as it is"
    toolstack again xenstore rm "$path/memory/target"
    look
    # A floor, more than any machine has, and one target after the other without a pause.
    for target in 0 40000000000000; do
        toolstack again xenstore write "$path/memory/target" "$target"
        await "words about $target" said -q "frames, not $((target / 4)):"
    done
    i=0
    while [ $i -lt 50 ]; do
        xenstore write "$path/memory/target" $((size - i % 7 * 1000))
        i=$((i + 1))
    done
    toolstack again xenstore write "$path/memory/target" "$size"
    await "$size KiB" has_pages $((size / 4))
}

# The toolstack's maximum is below what the guest is on its way to: it waits, and gets there later.
step_capped() {
    step_shrink
    toolstack again xl mem-max "$name" $((memory / 2 + 4))
    find_domain
    toolstack again xenstore write "/local/domain/$domain/memory/target" $((memory * 1024))
    await "the maximum to be noticed" said -q "raise its maximum (xl mem-max)"
    look
    pick pages
    [ "$value" -lt $((memory * 256)) ] || wrong "it has $value pages, more than its maximum"
    toolstack again xl mem-max "$name" "$maximum"
    step_grow
}

# Another domain takes all memory that Xen has while the guest is on its way up, and then goes.
step_starved() {
    step_shrink
    # It leaves half of what the guest is to get.
    room=$(($(xl info free_memory) - memory / 4))
    sed "s/^name = .*/name = \"$name.rival\"/; s/^extra = .*/extra = \"hang\"/
         s/^memory = .*/memory = $room/; s/^maxmem = .*/maxmem = $room/" \
        "$here/$number.cfg" > "$here/rival.cfg"
    toolstack again xl create -p "$here/rival.cfg"
    told=$(said -c "Xen has no more memory")
    toolstack again xl mem-set "$name" "${memory}m"
    await "Xen to run out" is_told_again
    look
    pick pages
    say "note Xen ran out with $value of $((memory * 256)) pages, $(xl info free_memory) MiB free"
    [ "$value" -lt $((memory * 256)) ] || wrong "there was enough memory"
    toolstack again xl destroy "$name.rival"
    await "$memory MiB" has_pages $((memory * 256))
}

is_told_again() {
    [ "$(said -c "Xen has no more memory")" -gt "$told" ]
}

step_pause() {
    toolstack again xl pause "$name"
    look_at_guest
    case $state in *p*) ;; *) wrong "paused, its state is $state" ;; esac
    toolstack again xl unpause "$name"
}

# The frame map in the dump, as lines that the harness compares with the guest's own.
step_dump_core() {
    toolstack again xl pause "$name"
    toolstack again xl dump-core "$name" "$here/core"
    toolstack again xl unpause "$name"
    # The section headers, 64 bytes each: the one with entries of 16 bytes is .xen_p2m.
    set -- $(od -A n -v -t u8 -j 40 -N 8 "$here/core") $(od -A n -v -t u2 -j 60 -N 2 "$here/core")
    set -- $(od -A n -v -t u8 -w64 -j "$1" -N $(($2 * 64)) "$here/core" |
        awk '$8 == 16 { print $4, $5 }')
    [ -n "$2" ] || wrong "the dump has no frame map"
    od -A n -v -t u8 -w16 -j "$1" -N "$2" "$here/core" |
        awk -v mark="@@pvmmu guest $number PVMMU-CORE" '
            count && $1 == start + count && $2 == first + count { count++; next }
            { if (count) print mark, start, count, first; start = $1; first = $2; count = 1 }
            END { if (count) print mark, start, count, first }'
    rm -f "$here/core"
    check_words=dump
}

# Another domain runs in its place. The xl that waits for that may have crashed by then, as said
# above: then this does what it would have done.
is_another() {
    find_domain || return
    [ "$domain" = "$before" ] || return 0
    look_at_guest
    case "$state $reason" in *s*" 1") ;; *) return 1 ;; esac
    pidof xl > /dev/null && return 1
    say "note no xl is left that could start $name again"
    toolstack again xl destroy "$name"
    toolstack find_domain xl create "$here/$number.cfg"
    find_domain
}

step_reboot() {
    find_domain && before=$domain
    toolstack again xl reboot "$name"
    await "the guest to start again" is_another
    ends_well Reboot || wrong "before it the guest said: $(said ^PVMMU-VERDICT)"
    asked=0
    # It begins from the beginning.
    ask size
    pick suspends
    [ "$value" = 0 ] || wrong "after $value suspends it is no new guest"
}

has_ended() {
    look_at_guest
    case $state in *s*) [ "$reason" = 0 ] ;; *) false ;; esac
}

# A key, and the words that the guest says of it.
step_sysrq() {
    toolstack again xl sysrq "$name" m
    await "the answer to a key" said -q '^sysrq m: pages='
}

# In a shell of its own, which `wrong` ends.
session() (
    asked=0
    step=start
    find_domain
    check
    for word in "$@"; do
        times=${word#*\*}
        step=${word%%\**}
        [ "$times" = "$word" ] && times=1
        while [ "$times" -gt 0 ]; do
            check_words=
            "step_$(echo "$step" | tr - _)" || wrong "there is no such step"
            times=$((times - 1))
            check $check_words
        done
    done
    step=shutdown
    toolstack again xl shutdown "$name"
    await "the guest to end" has_ended
    ends_well Poweroff || wrong "the guest said: $(said ^PVMMU-VERDICT)"
    # It is kept as it ended, with all its pages.
    count
    echo "pass a session of $# steps" > "$here/verdict"
)

# Sets ending and verdict, when all has happened to the guest.
live_with_guest() {
    if ! session "$@"; then
        find_domain && xenctx "$domain" 0 2>&1 | head -n 20
        set +f
        tail -n 20 /var/log/xen/xl-*.log
        set -f
    fi
    verdict=$(cat "$here/verdict")
    ending="shutdown 0"
}
