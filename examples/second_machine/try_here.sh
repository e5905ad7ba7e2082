#!/bin/sh
# Plays the two machines of README.md on this one.
set -eu

folder=$(mktemp -d)
mgr_state=$folder/mgr
node_state=$folder/node2 # the second machine shares nothing with the first

manager= worker=
stop() {
    trap - EXIT INT TERM
    for process in $worker $manager; do kill "$process" 2>/dev/null && wait "$process" || true; done
    rm -rf "$folder"
}
trap stop EXIT
trap 'exit 130' INT TERM

wait_for() { # TEXT FILE: until the text is in the file, at most 30 s
    for _ in $(seq 300); do
        grep -q "$1" "$2" && return
        sleep 0.1
    done
    echo "waited in vain for \"$1\":" && cat "$2" && exit 1
}

echo "mgr:    taskq-manager --bind 0.0.0.0 --advertise 127.0.0.1"
taskq-manager --state-dir "$mgr_state" --bind 0.0.0.0 --advertise 127.0.0.1 --port 0 --workers 0 2>"$folder/mgr.log" &
manager=$!
wait_for " ready on " "$folder/mgr.log"

echo "node2:  ssh mgr taskq-manager --print-join | taskq-worker --join -"
taskq-manager --state-dir "$mgr_state" --print-join >"$folder/join"
taskq-worker --state-dir "$node_state" --join - --workers 1 --worker-name node2 <"$folder/join" 2>"$folder/node2.log" &
worker=$!

echo "mgr:    taskq-submit compute operation=factorial value=20 --wait"
taskq-submit --state-dir "$mgr_state" compute operation=factorial value=20 --wait 30

echo "mgr:    taskq-monitor task show 1"
taskq-monitor --state-dir "$mgr_state" task show 1
