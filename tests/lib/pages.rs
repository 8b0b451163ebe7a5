//! Manual pages and shell completions of a program, made from its command line. Each program
//! includes this file in its tests: the generators stay out of the programs, where they would cost
//! a device 271 kB (measured in a small program, stripped).
//!
//! With `DISTD_WRITE_PAGES=DIR` the test leaves its files in DIR, which deploy/packages.sh puts
//! into packages.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command as Process, Stdio};

use clap::Command;
use clap_complete::Shell;

/// Makes the files of `program`, with pages of manual section `section`, and checks them: every
/// command has a page, `mandoc` or `groff` finds no error in any, and bash loads the completions
/// and completes with them.
pub(crate) fn check(program: Command, section: &str) {
    let name = program.get_name().to_owned();
    let temporary = tempfile::tempdir().expect("a directory");
    let kept = std::env::var_os("DISTD_WRITE_PAGES").map(PathBuf::from);
    let dir = kept.as_deref().unwrap_or(temporary.path());
    let (man, completions) = (dir.join("man"), dir.join("completions"));
    fs::create_dir_all(&man).expect("a directory");
    let mut built = program.disable_help_subcommand(true);
    built.build();
    let mut pages = Vec::new();
    write_pages(&built, section, &man, &mut pages);

    let commands = count(&built);
    assert_eq!(pages.len(), commands, "a page for each command of {name}");
    for page in &pages {
        let text = fs::read_to_string(page).expect("a page");
        assert!(text.contains(".SH NAME") && text.contains(".SH SYNOPSIS"), "{}", page.display());
    }
    lint(&pages);

    for (shell, directory) in [(Shell::Bash, "bash"), (Shell::Zsh, "zsh"), (Shell::Fish, "fish")] {
        let directory = completions.join(directory);
        fs::create_dir_all(&directory).expect("a directory");
        // Debian loads the completions of bash by the program's bare name.
        let file = match shell {
            Shell::Bash => name.clone(),
            Shell::Zsh => format!("_{name}"),
            _ => format!("{name}.fish"),
        };
        let mut out = File::create(directory.join(file)).expect("a file");
        clap_complete::generate(shell, &mut built.clone(), &name, &mut out);
    }
    let first = built.get_subcommands().next().expect("a command").get_name().to_owned();
    completes(&completions.join("bash").join(&name), &name, &first);
}

/// Writes the page of `command` and of each command below it.
fn write_pages(command: &Command, section: &str, dir: &Path, pages: &mut Vec<PathBuf>) {
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        write_pages(below, section, dir, pages);
    }
    let source = format!("distd {}", env!("CARGO_PKG_VERSION"));
    let page = clap_mangen::Man::new(command.clone()).section(section).manual("distd").source(source);
    pages.push(page.generate_to(dir).expect("a page"));
}

/// Number of commands of a program that help shows, and the program itself.
fn count(command: &Command) -> usize {
    1 + command.get_subcommands().filter(|below| !below.is_hide_set()).map(count).sum::<usize>()
}

/// Checks pages by the formatter that this machine has.
fn lint(pages: &[PathBuf]) {
    let has = |program: &str| {
        let found = Process::new("sh").args(["-c", "command -v \"$1\"", "sh", program]).output();
        found.is_ok_and(|found| found.status.success())
    };
    let mut linter = if has("mandoc") {
        let mut mandoc = Process::new("mandoc");
        mandoc.args(["-T", "lint", "-W", "error"]);
        mandoc
    } else if has("groff") {
        let mut groff = Process::new("groff");
        groff.args(["-man", "-ww", "-Tutf8", "-z"]);
        groff
    } else {
        eprintln!("skipped: neither mandoc nor groff is here to check manual pages");
        return;
    };
    let done = linter.args(pages).stdin(Stdio::null()).output().expect("the formatter runs");
    let said = format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success() && said.is_empty(), "{said}");
}

/// Has bash load `file` and complete the beginning of the command `first` of `program`.
fn completes(file: &Path, program: &str, first: &str) {
    // bash hands a completing function the words of the line, and takes COMPREPLY from it.
    let script = r#"
        set -e
        . "$1"
        function=$(complete -p "$2" | sed -n 's/.* -F \([^ ]*\) .*/\1/p')
        COMP_WORDS=("$2" "${3:0:2}") COMP_CWORD=1
        "$function" "$2" "${3:0:2}" "$2"
        printf '%s\n' "${COMPREPLY[@]}"
    "#;
    let mut bash = Process::new("bash");
    let done = bash.args(["--norc", "-c", script, "bash"]).arg(file).args([program, first]).output();
    let done = done.expect("bash runs");
    let said = String::from_utf8_lossy(&done.stdout);
    let why = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success() && said.lines().any(|line| line == first), "{said}{why}");
}
