"""Many mutants in one build, for ci/mutants: each function that has some holds its body once more for each of them, and a variable chooses one.

What a mutant is, where it is and what it says are cargo-mutants' words; here its text only stands beside the others' instead of in place of the one that it
changes. So it is a comparison of numbers away from what cargo-mutants would have built, and costs a run instead of a build and a run.

Left out, for cargo-mutants itself: what is in no function, in a function that has to be constant somewhere, or does not compile for the others' sake.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

VARIABLE = "SHIFT_MUTANT"
CHOICE = f"""
/// The mutant that this process is; 0: none.
#[doc(hidden)]
pub fn chosen_mutant() -> u32 {{
    extern crate std;
    static CHOSEN: std::sync::OnceLock<u32> = std::sync::OnceLock::new();
    *CHOSEN.get_or_init(|| std::env::var("{VARIABLE}").map_or(0, |number| number.parse().unwrap()))
}}
"""
# Numbers that nothing else in an error's text has.
FIRST = 1_000_001
# A mutant that loops and allocates ends by itself.
MOST_MEMORY = 12 << 30


def limited(seconds):
    """Starts a program that may take so much of a processor: a mutant without end has to be told from a machine with much to do."""
    return ["prlimit", "--core=0", f"--cpu={seconds}", f"--as={MOST_MEMORY}", "--"]


def write(path, content):
    if not path.exists() or path.read_bytes() != content:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def code_of(error):
    return (error["code"] or {}).get("code")


def is_its_own(error):
    """Whether a mutant would not compile alone either: a body is held against what its function returns, not against the others, unless that has no name."""
    code = code_of(error)
    return (code is None or (code.startswith("E") and code != "E0015")) and "arms have incompatible" not in error["message"]


class Source:
    """A file, and the mutants of each of its functions."""

    def __init__(self, text):
        self.text = text
        self.lines = [0]
        for line in text.splitlines(keepends=True):
            self.lines.append(self.lines[-1] + len(line))
        self.functions = defaultdict(list)

    def at(self, point):
        return self.lines[point["line"] - 1] + point["column"] - 1

    def add(self, number, mutant):
        function = mutant["function"]
        if not function:
            return
        head, end = (self.at(function["span"][side]) for side in ("start", "end"))
        first, last = (self.at(mutant["span"][side]) for side in ("start", "end"))
        name = function["function_name"].split("::")[-1]
        brace = self.text.index("{", re.compile(rf"\bfn {name}\b").search(self.text, head, end).end())
        if brace < first:
            body = self.text[brace:first] + mutant["replacement"] + self.text[last:end]
            self.functions[head, brace, end, name].append((number, body))

    def written(self, without, constant):
        """The text with them, and of each the lines that are its own."""
        pieces, owners, line, at = [], [], 1, 0

        def put(text):
            nonlocal line
            pieces.append(text)
            line += text.count("\n")

        def without_const(text):
            return re.sub(r"\bconst (fn (\w+))", lambda found: found[0] if found[2] in constant else found[1], text)

        for (head, brace, end, name), bodies in sorted(self.functions.items()):
            bodies = [(number, body) for number, body in bodies if number not in without]
            if name in constant or not bodies or head < at:
                continue
            put(without_const(self.text[at:brace]))
            put("{\nmatch crate::chosen_mutant() {\n")
            for number, body in bodies:
                began = line
                put(f"{number} => {body}\n")
                owners.append((began, line - 1, number))
            put(f"_ => {self.text[brace:end]}\n}}\n}}")
            at = end
        put(without_const(self.text[at:]))
        return "".join(pieces), owners


class Bundle:
    """The build of these mutants, in a copy of the sources. `packages`: whose tests are to be run."""

    def __init__(self, home, folder, mutants, packages):
        self.home, self.copy, self.target, self.packages = home, folder / "copy", folder / "target", packages
        self.mutants = dict(enumerate(mutants, FIRST))
        self.without, self.constant, self.refused, self.programs = set(), set(), set(), {}
        self.sources = {}
        for number, mutant in self.mutants.items():
            file = mutant["file"]
            self.sources.setdefault(file, Source((home / file).read_text())).add(number, mutant)
        self.remember()
        self.make_copy()
        while not self.is_accepted():
            self.left_out.write_text(json.dumps([self.digest, *map(sorted, (self.without, self.constant, self.refused))]))
        self.number_of = {self.mutants[number]["name"]: number for lines in self.owners.values() for _, _, number in lines}
        self.unviable = {self.mutants[number]["name"] for number in self.refused}

    def remember(self):
        """What the compiler refused the last time, if it is the same text."""
        self.left_out = self.copy.parent / "left_out.json"
        text = "".join(source.text for source in self.sources.values()) + "".join(mutant["name"] for mutant in self.mutants.values())
        self.digest = hashlib.sha256(text.encode()).hexdigest()
        if self.left_out.exists():
            digest, *known = json.loads(self.left_out.read_text())
            if digest == self.digest:
                self.without, self.constant, self.refused = map(set, known)

    def make_copy(self):
        """Only what changed is written: cargo goes by the time."""
        listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
        names = subprocess.run(listed, cwd=self.home, capture_output=True, text=True, check=True).stdout.split("\0")
        files = {self.copy / name: self.home / name for name in names if name and (self.home / name).is_file()}
        for old in [path for path in self.copy.rglob("*") if path.is_file() and path not in files]:
            old.unlink()
        for path, original in files.items():
            content = original.read_bytes()
            if str(original.relative_to(self.home)) in self.sources:
                continue
            if original == self.home / "src/proto/lib.rs":
                content += CHOICE.encode()
            write(path, content)

    def cargo(self, *arguments):
        """Whether it went well, and what was said of targets and errors."""
        run = subprocess.run(
            ["cargo", *arguments, "--profile=mutants", "--message-format=json"],
            cwd=self.copy,
            # Of the bodies beside each other much is unused, or the same.
            env={**os.environ, "CARGO_TARGET_DIR": str(self.target), "CARGO_INCREMENTAL": "1", "RUSTFLAGS": "-Awarnings"},
            capture_output=True,
            text=True,
        )
        said = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
        if run.returncode and not any(each["reason"] == "compiler-message" for each in said):
            sys.exit(f"mutants: {run.stderr}")
        return run.returncode == 0, said

    def is_accepted(self):
        """By the compiler; else those that it refuses are left out."""
        self.owners = {}
        for file, source in self.sources.items():
            text, self.owners[file] = source.written(self.without, self.constant)
            write(self.copy / file, text.encode())
        is_good, said = self.cargo("check", "--tests", *(f"--package={package}" for package in self.packages))
        if is_good:
            return True
        before = len(self.without) + len(self.constant)
        errors = [each["message"] for each in said if each["reason"] == "compiler-message" and each["message"]["level"] == "error"]
        for error in errors:
            self.leave_out(error)
        if len(self.without) + len(self.constant) == before:
            sys.exit("mutants: the bundle does not compile: " + "".join(error["rendered"] for error in errors))
        return False

    def leave_out(self, error):
        for span in sorted(error["spans"], key=lambda span: not span["is_primary"]):
            for first, last, number in self.owners.get(span["file_name"], []):
                if first <= span["line_start"] <= last:
                    self.without.add(number)
                    if is_its_own(error):
                        self.refused.add(number)
                    return
        # What is called where only constant functions may be remains one.
        if code_of(error) == "E0015":
            called = re.search(r"(\w+)(?:::<[^`]*>)?`", error["message"])
            self.constant.update([called[1]] if called else [])

    def build(self, package, tests):
        """The programs of these tests; unmutated they have to pass."""
        is_good, said = self.cargo("test", "--no-run", f"--package={package}", *(f"--test={test}" for test in tests))
        if not is_good:
            sys.exit(f"mutants: the tests of {package} do not compile with the bundle")
        for each in said:
            if each["reason"] == "compiler-artifact" and each.get("executable"):
                self.programs[package, each["target"]["name"]] = each["executable"], Path(each["manifest_path"]).parent

    def fails(self, number, package, test, chosen, seeds, seconds):
        """Whether that test does with that mutant; 0: with none."""
        program, folder = self.programs[package, test]
        variables = {VARIABLE: str(number), "SHIFT_SEEDS": str(seeds), "RUST_BACKTRACE": "0"}
        # What one mutant was caught by is not to be tried with the next one.
        variables["PROPTEST_DISABLE_FAILURE_PERSISTENCE"] = "true"
        run = subprocess.run(
            [*limited(seconds), program, *chosen],
            cwd=folder,
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        return run.returncode != 0
