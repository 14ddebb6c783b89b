# A part of dom0_guests.sh: a guest that says PVMMU-STAY has published its frame map and waits to be
# examined. What the toolstack reads of the map goes to the harness as lines of the guest's:
# "PVMMU-SEEN PFN COUNT MFN" for pfns whose frames follow one another, in decimal, and
# "PVMMU-SEEN PFN COUNT 0xWORD" for pfns that all have the same word, one that is no frame.
#
# There is a line for each pfn. Nearly every one is what the line before it lets expect, so that is
# what is compared, as a whole; only the others are taken apart.
examine_guest() {
    awk '/^PVMMU-STAY/ { found = 1 } END { exit !found }' "$log" || return 1
    xen-mfndump dump-p2m "$domain" 2>&1 | awk -F '\n' -v mark="@@pvmmu guest $number PVMMU-SEEN" '
        function number(text,    k, value) {
            value = 0
            for (k = 3; k <= length(text); k++)
                value = value * 16 + index("0123456789abcdef", substr(text, k, 1)) - 1
            return value
        }
        function flush() { if (count) print mark, start, count, first; count = 0 }
        $0 == expected {
            count++; pfn++
            expected = frame ? sprintf(form, pfn, ++mfn) : sprintf(form, pfn)
            next
        }
        / ==> / {
            split($0, words, " ")
            pfn = number(substr(words[1], 5)); word = substr(words[3], 5)
            frame = length(word) < 16
            if (frame) {
                mfn = number(word)
                follows = count && form ~ /mfn=0x%x/ && pfn == start + count && mfn == first + count
                form = "  pfn=0x%x ==> mfn=0x%x (type 0x0)"
            } else {
                follows = 0
                form = $0
                sub(/pfn=0x[0-9a-f]*/, "pfn=0x%x", form)
            }
            if (follows) count++
            else { flush(); start = pfn; first = frame ? mfn : word; count = 1 }
            pfn++
            expected = frame ? sprintf(form, pfn, ++mfn) : sprintf(form, pfn)
            next
        }
        !/ --- |Guest Width/ { print "mfndump:", $0 }
        END { flush() }'
    say "guest $number PVMMU-VERDICT pass examined"
    ending="shutdown 0"
}
