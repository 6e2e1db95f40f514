//! Compares every size, offset and constant of this crate with a C program compiled against the installed verbs.h.
//!
//! A header that is newer may have grown: [`verbs_context`](crate::verbs_context) grows at its beginning, so its
//! fields are compared by their distance from its end.

use crate::{attr, constants, context, extended, objects, work};
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

/// (C type, its size, [(C field, offset)]).
pub(crate) type StructLayout = (&'static str, usize, &'static [(&'static str, usize)]);

const HEADER: &str = "/usr/include/infiniband/verbs.h";

/// Everything to compare: (a C expression, what this crate says).
fn facts() -> Vec<(String, i64)> {
    let mut facts = Vec::new();
    for layout in [attr::LAYOUT, context::LAYOUT, extended::LAYOUT, objects::LAYOUT, work::LAYOUT] {
        for (c_type, size, fields) in layout {
            let grows_down = *c_type == "struct verbs_context";
            if !grows_down {
                facts.push((format!("sizeof({c_type})"), *size as i64));
            }
            for (field, offset) in *fields {
                if grows_down {
                    let expression = format!("sizeof({c_type}) - offsetof({c_type}, {field})");
                    facts.push((expression, (*size - *offset) as i64));
                } else {
                    facts.push((format!("offsetof({c_type}, {field})"), *offset as i64));
                }
            }
        }
    }
    for (path, offset) in work::SEND_WR_PATHS {
        facts.push((format!("offsetof(struct ibv_send_wr, {path})"), *offset as i64));
    }
    for (name, value) in constants::ALL.iter().copied().flatten() {
        facts.push(((*name).to_owned(), *value));
    }
    facts.push(("(uintptr_t)__VERBS_ABI_IS_EXTENDED".to_owned(), crate::VERBS_ABI_IS_EXTENDED as i64));
    facts
}

fn c_program(facts: &[(String, i64)]) -> String {
    let mut source = String::from("#include <stdio.h>\n#include <infiniband/verbs.h>\nint main(void) {\n");
    for (expression, _) in facts {
        writeln!(source, "printf(\"%lld\\n\", (long long)({expression}));").expect("a String takes all");
    }
    source.push_str("return 0; }\n");
    source
}

/// Of the machine that this test is built for: the one that it runs on may emulate that.
fn compiler() -> String {
    let of_machine = format!("{}-linux-gnu-gcc", std::env::consts::ARCH);
    let is_there = Command::new(&of_machine).arg("--version").output().is_ok_and(|output| output.status.success());
    if is_there {
        of_machine
    } else {
        "cc".to_owned()
    }
}

/// By what cargo runs this test, if it does not run by itself.
fn runner(program: &Path) -> Command {
    let variable = format!("CARGO_TARGET_{}_UNKNOWN_LINUX_GNU_RUNNER", std::env::consts::ARCH.to_uppercase());
    let Ok(words) = std::env::var(variable) else { return Command::new(program) };
    let mut words = words.split_whitespace();
    let mut command = words.next().map_or_else(|| Command::new(program), Command::new);
    command.args(words).arg(program);
    command
}

fn compile_and_run(source: &str) -> String {
    let folder = std::env::temp_dir().join(format!("shift-abi-header-{}-{}", std::process::id(), source.len()));
    std::fs::create_dir_all(&folder).expect("a folder for the C program");
    let (c_file, program) = (folder.join("facts.c"), folder.join("facts"));
    std::fs::write(&c_file, source).expect("the C program is written");
    let compiled = Command::new(compiler()).arg("-o").arg(&program).arg(&c_file).output().expect("cc runs");
    assert!(compiled.status.success(), "cc: {}", String::from_utf8_lossy(&compiled.stderr));
    let output = runner(&program).output().expect("the C program runs");
    assert!(output.status.success(), "the C program: {}", String::from_utf8_lossy(&output.stderr));
    std::fs::remove_dir_all(&folder).expect("the folder goes");
    String::from_utf8(output.stdout).expect("digits")
}

#[test]
fn every_size_offset_and_constant_is_the_installed_headers() {
    if !Path::new(HEADER).exists() {
        eprintln!("SKIPPED: {HEADER} is not installed (package libibverbs-dev); nothing was compared");
        return;
    }
    let facts = facts();
    let printed = compile_and_run(&c_program(&facts));
    let values: Vec<i64> = printed.lines().map(|line| line.parse().expect("a number")).collect();
    assert_eq!(values.len(), facts.len());
    let wrong: Vec<String> = facts
        .iter()
        .zip(values)
        .filter(|((_, ours), theirs)| ours != theirs)
        .map(|((expression, ours), theirs)| format!("{expression} is {theirs}, this crate says {ours}"))
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(facts.len() > 600, "only {} facts: a table is missing", facts.len());
}

/// `wr_flush` is in headers of rdma-core 45 and later; this crate's structure ends before it.
#[test]
fn wr_flush_lies_directly_behind_what_older_headers_know() {
    let mut pair = crate::ibv_qp_ex::zeroed();
    let begin = &raw mut pair as usize;
    let slot = crate::wr_flush_slot(&mut pair) as usize;
    assert_eq!(slot - begin, std::mem::size_of::<crate::ibv_qp_ex>());
    let knows_it = std::fs::read_to_string(HEADER).is_ok_and(|header| header.contains("(*wr_flush)"));
    if !knows_it {
        eprintln!("SKIPPED: {HEADER} has no wr_flush; only the end of the older structure was compared");
        return;
    }
    let source = "#include <stddef.h>\n#include <stdio.h>\n#include <infiniband/verbs.h>\n\
                  int main(void) { printf(\"%zu\\n\", offsetof(struct ibv_qp_ex, wr_flush)); return 0; }\n";
    assert_eq!(compile_and_run(source).trim().parse(), Ok(slot - begin));
}

#[test]
fn the_zeroed_value_is_all_zero_bytes() {
    let wr = crate::ibv_send_wr::zeroed();
    assert_eq!((wr.wr_id, wr.next.is_null(), wr.imm.raw()), (0, true, 0));
    assert!(crate::ibv_context_ops::zeroed().post_send.is_none());
}
