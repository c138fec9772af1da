#!/bin/sh
# Fuzz the parsers of hostile input for SECONDS in all (default 20): the agent's frames and archives and the relay's lines
# by libFuzzer, the server's frames by atheris or Hypothesis. Exit code 1 when one of them failed; what made it fail is left in FUZZ_DIR.
#   fuzz/run.sh [SECONDS]      PYTHON=python3  FUZZ_DIR=build/fuzz  CLANG=clang
set -eu
cd "$(dirname "$0")/.."
each=$(( ${1:-20} / 4 ))
[ "$each" -ge 1 ] || each=1
dir=${FUZZ_DIR:-build/fuzz}
python=${PYTHON:-.venv/bin/python}
[ -x "$python" ] || python=$(command -v python3)
clang=$(command -v "${CLANG:-clang}" || true)
mkdir -p "$dir"
"$python" fuzz/seeds.py "$dir"
failed=0

libfuzzer() { # NAME SOURCE…
    name=$1
    shift
    if ! "$clang" -std=gnu11 -D_GNU_SOURCE -g -O1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all \
        -o "$dir/fuzz_$name" "$@" 2>"$dir/$name.build"; then
        echo "$name: skipped, it does not compile (no libFuzzer? apt-get install clang libclang-rt-dev): $dir/$name.build"
        return
    fi
    if "$dir/fuzz_$name" -max_total_time="$each" -timeout=10 -rss_limit_mb=512 -max_len=8192 \
        -artifact_prefix="$dir/$name-" "$dir/$name" 2>"$dir/$name.log"; then
        echo "$name: $(grep -o 'Done [0-9]* runs' "$dir/$name.log" || echo done), coverage $(grep -o 'cov: [0-9]*' "$dir/$name.log" | tail -1)"
    else
        failed=1
        echo "$name: FAILED, see $dir/$name.log" >&2
        tail -20 "$dir/$name.log" >&2
    fi
}

if [ -n "$clang" ]; then
    libfuzzer frames fuzz/fuzz_frames.c guest/frames.c
    libfuzzer tar fuzz/fuzz_tar.c
    libfuzzer relay fuzz/fuzz_relay.c guest/relay/lines.c
else
    echo "frames, tar, relay: skipped, no clang here: apt-get install clang libclang-rt-dev"
fi
if "$python" fuzz/fuzz_link.py "$each" "$dir/link" >"$dir/link.log" 2>&1; then
    echo "link: $(grep -Eo 'Done [0-9]* runs|[0-9]+ inputs' "$dir/link.log" | tail -1)"
else
    failed=1
    echo "link: FAILED, see $dir/link.log" >&2
    tail -20 "$dir/link.log" >&2
fi
exit $failed
