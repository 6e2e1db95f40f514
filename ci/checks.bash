# Sourced by scripts/test: runs checks, shows their progress, counts, and says at the end what came of each.

logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
begun=$SECONDS
passed=0
failed=0
summary=()

# Patterns of progress: of cargo the crates that it compiles and the results of each test program.
compiling='^ *(Compiling|Checking) shift|^(warning|error)'
testing="$compiling|^ *(Running|Doc-tests)|^test result|FAILED|panicked"

# A line of the summary: verdict, name, seconds, note.
note() {
    summary+=("$(printf '%-4s  %-52s %5s s  %s' "$1" "$2" "$3" "${4-}")")
}

count() {
    passed=$((passed + $1))
    failed=$((failed + $2))
}

# Name, the lines of its output that are progress, command. Says afterwards how it ended; of a failure it repeats everything.
check() {
    local name=$1 progress=$2 start=$SECONDS status=0
    shift 2
    log="$logs/log"
    echo "==> $name"
    "$@" </dev/null 2>&1 | tee "$log" | { grep --line-buffered -E "$progress" || true; } || status=$?
    took=$((SECONDS - start))
    if ((status)); then
        echo "==> $name failed (exit $status)"
        [[ $progress == . ]] || { echo "everything it said:" && cat "$log"; }
    fi
    verdict=$([[ $status == 0 ]] && echo ok || echo FAIL)
}

# One that counts as one.
check_one() {
    check "$@"
    [[ $verdict == ok ]] && count 1 0 || count 0 1
    note "$verdict" "$1" "$took"
}

# Adds up what the lines `... N passed; M failed` say; a command that failed without one counts as one failure.
check_many() {
    local good bad
    check "$@"
    read -r good bad < <(sed -nE 's/.* ([0-9]+) passed; ([0-9]+) failed.*/\1 \2/p' "$log" | awk '{ p += $1; f += $2 } END { print p + 0, f + 0 }')
    [[ $verdict == FAIL && $bad == 0 ]] && bad=1
    count "$good" "$bad"
    note "$verdict" "$1" "$took" "$good passed, $bad failed"
    [[ $verdict == ok ]] || note_failures
}

# Which tests failed and where, below the line of their check: whoever has only the end of the output has this.
note_failures() {
    local line
    while read -r line; do
        summary+=("        $line")
    done < <(grep -E -A 1 '^test .* FAILED$|panicked at' "$log" | grep -vE '^--$|^test .* ok$|^note: ' | head -n 20)
}

# Options and names for the lab's `run`. Scenarios say what they do on standard error and give one JSON object each on standard output.
run_lab() {
    local status=0 good=0 bad=0 verdict name took remark
    echo "==> the lab's scenarios"
    "$built/shift-lab" run "$@" </dev/null >"$logs/objects" || status=$?
    while IFS=$'\t' read -r verdict name took remark; do
        [[ $verdict == ok ]] && good=$((good + 1)) || bad=$((bad + 1))
        note "$verdict" "$name" "$took" "$remark"
    done < <(python3 -c "$objects_to_lines" "$logs/objects")
    ((status && bad == 0)) && bad=1 && note FAIL "the lab itself" 0 "exit $status"
    ((status == 0 && good == 0)) && bad=1 && note FAIL "the lab itself" 0 "it ran nothing"
    count "$good" "$bad"
}

objects_to_lines='
import json, sys
for line in open(sys.argv[1]):
    o = json.loads(line)
    seed = "" if o["seed"] == 1 else " --seed %d" % o["seed"]
    again = "ran again: " + o["ran_again_because"] if "ran_again_because" in o else ""
    why = " ".join(str(o.get("why") or again).split())
    print("ok" if o["pass"] else "FAIL", o["scenario"] + seed, round(o["took_ms"] / 1000), why, sep="\t")
'

# Prints the summary; true if nothing failed.
conclude() {
    echo
    printf '%s\n' "${summary[@]}"
    echo "$((SECONDS - begun)) s"
    echo "$passed passed, $failed failed"
    ((failed == 0))
}
