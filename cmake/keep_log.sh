#!/bin/sh
# Runs a compiler and keeps what it says in OBJECT.log, where tests/cuda reads the kernels' registers from.
last=
for word; do
  if [ "$last" = -o ]; then object=$word; fi
  last=$word
done
"$@" >"$object.log" 2>&1 && exit 0
code=$?
cat "$object.log" >&2
exit "$code"
