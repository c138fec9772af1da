"""The shell of the tools: what GNU and busybox share. Paths and patterns are arguments, never text of a script."""

from __future__ import annotations

from typing import Final

#: A command in the folder the one before ended in ($2 holds its name), by bash where there is one. Both streams come as
#: one, in order. `set --` and the unusual names keep our arguments out of the command's sight.
BASH: Final = r"""
[ -s "$2" ] && { cd -- "$(cat -- "$2")" 2>/dev/null || echo "[the folder $(cat -- "$2") is gone; this is $PWD]"; }
exec 2>&1
inner='__runra_c=$1 __runra_f=$2; set --; trap '\''{ pwd -P >"$__runra_f"; } 2>/dev/null'\'' EXIT; eval "$__runra_c"'
if command -v bash >/dev/null 2>&1; then exec bash -c "$inner" bash "$1" "$2"; fi
exec sh -c "$inner" sh "$1" "$2"
"""

#: Exit codes beside those that `runra.runtime.sandboxes.shell.REASONS` has.
NO_FILE: Final = 46
BINARY: Final = 47
BAD_PATTERN: Final = 48
TOO_LARGE: Final = 49

#: Whether a file is one, and of at most $2 bytes.
SMALL: Final = r"""
[ -e "$1" ] || exit 40; [ -d "$1" ] && exit 41; [ -f "$1" ] || exit 46; [ -r "$1" ] || exit 45
[ "$(wc -c < "$1")" -le "$2" ] || exit 49
"""

#: Lines $2 to $3 of a file, at most $4 bytes; before them a line with how many lines and bytes it has.
READ: Final = r"""
[ -e "$1" ] || exit 40; [ -d "$1" ] && exit 41; [ -f "$1" ] || exit 46; [ -r "$1" ] || exit 45
[ "$(head -c 8192 -- "$1" | wc -c)" -eq "$(head -c 8192 -- "$1" | tr -d '\000' | wc -c)" ] || exit 47
# A last line without an end is one as well.
echo "$(( $(wc -l < "$1") + $(tail -c 1 -- "$1" | tr -d '\n' | wc -c) )) $(wc -c < "$1")"
sed -n "$2,$3p;$3q" -- "$1" | head -c "$4"
"""

#: The files below a folder, at most $2 bytes of names. What version control keeps for itself is left out.
FIND: Final = r"""
[ -e "$1" ] || exit 40; [ -d "$1" ] || exit 42; cd -- "$1" || exit 45
find . -name .git -prune -o \( -type f -o -type l \) -print0 2>/dev/null | head -c "$2"
"""

#: Lines that match $2 in the files below $1 (or in that file), with $3 lines around each; only names of files when $4
#: is `files`; $5 holds further flags of grep, and what follows is find's. Not every grep has -I and --include.
GREP: Final = r"""
where=$1 pattern=$2 around=$3 mode=$4 flags=$5; shift 5
[ -e "$where" ] || exit 40
why=$(echo | grep -E $flags -q -e "$pattern" 2>&1); [ -z "$why" ] || { printf '%s' "$why"; exit 48; }
[ "$mode" = files ] && flags="$flags -l" || flags="$flags -n -H"
[ "$around" = 0 ] || flags="$flags -C $around"
[ -n "$(grep -I -e '' /dev/null 2>&1)" ] || flags="$flags -I"
if [ -f "$where" ]; then target=$where; else cd -- "$where" || exit 45; target=.; fi
find "$target" -name .git -prune -o -type f "$@" -exec grep -E $flags -s -e "$pattern" -- {} + 2>/dev/null |
  head -c 400000
exit 0
"""
