#!/bin/sh
# Runs the guests on the dom0 of a machine that is used for other things, too: sent there and
# started by `cargo xtask host`. Nothing is left of it: `dom0_host.sh clean` removes it all.
here=$(cd "$(dirname "$0")" && pwd)
tag=$(basename "$here")
for folder in /usr/sbin /sbin /usr/lib/xen-*/bin /usr/lib/xen/bin /usr/libexec/xen/bin; do
    [ -d "$folder" ] && PATH=$PATH:$folder
done
export PATH

if [ "$1" = clean ]; then
    # Names are the folder's, so that no other guest is meant.
    xl list | awk -v tag="$tag." 'index($1, tag) == 1 { print $1 }' | while read -r name; do
        xl destroy "$name"
    done
    rm -rf "$here"
    exit
fi

leave() {
    exit 1
}

name_logs() {
    log=$here/$name.console
    incoming=$here/$name--incoming.console
}

# Nobody else keeps what the guest writes. It ends and begins again when the guest is restored. Its
# input is a pipe that nobody writes to and that has no end.
listen_to_guest() {
    mkfifo "$here/input$number"
    while :; do
        xl console "$name" <> "$here/input$number" >> "$log" 2> /dev/null
        sleep 0.1
    done &
    listener=$!
}

stop_listening() {
    kill "$listener"
}

. "$here/guests.sh"
run_guests
