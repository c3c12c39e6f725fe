#!/bin/sh
# What examples/agent.yaml runs.
set -eu
for round in $(seq "$ROUNDS"); do
    echo "round $round on $TOPIC, $(uname -sr)"
done > /srv/out/report.txt
