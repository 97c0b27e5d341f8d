//! `plaintap generate`: completions for shells and a man page, made from the command line's own description.

use std::{
    fmt::Write as _,
    fs, io,
    path::{Path, PathBuf},
};

use argh::{ArgsInfo, CommandInfoWithArgs, FlagInfo, FlagInfoKind, Optionality};

use crate::{args, commands::GenerateArgs};

/// What could not be written.
#[derive(Debug, thiserror::Error)]
#[error("can't write {0}")]
pub struct Error(PathBuf, #[source] io::Error);

/// Writes all of them into the folder; what is to be printed of it.
pub fn run(args: GenerateArgs) -> Result<String, Error> {
    let info = args::Args::get_args_info();
    let files = [
        ("plaintap.1", man(&info)),
        ("plaintap.bash", bash(&info)),
        ("_plaintap", zsh(&info)),
        ("plaintap.fish", fish(&info)),
    ];
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |error| Error(path, error)
    };
    fs::create_dir_all(&args.folder).map_err(failed(&args.folder))?;
    let mut said = String::new();
    for (name, text) in files {
        let path = args.folder.join(name);
        fs::write(&path, text).map_err(failed(&path))?;
        let _ = writeln!(said, "{}", path.display());
    }
    Ok(said)
}

/// What the value of a flag or argument of that name may be.
fn values(arg_name: &str) -> Option<&'static str> {
    (arg_name == "format").then_some("pb jsonl pcapng har")
}

fn is_file(arg_name: &str) -> bool {
    matches!(arg_name, "file" | "path" | "folder")
}

fn arg_name<'a>(flag: &'a FlagInfo) -> Option<&'a str> {
    match flag.kind {
        FlagInfoKind::Switch => None,
        FlagInfoKind::Option { arg_name } => Some(arg_name),
    }
}

/// `-o` and `--output`; argh names `--long` with its hyphens.
fn spellings(flag: &FlagInfo) -> Vec<String> {
    let short = flag.short.map(|short| format!("-{short}"));
    short.into_iter().chain([format!("--{}", flag.long.trim_start_matches('-'))]).collect()
}

fn bash(info: &CommandInfoWithArgs) -> String {
    let names: Vec<&str> = info.commands.iter().map(|command| command.name).collect();
    let mut script = format!(
        "# Completion of plaintap for bash: source this, or put it into bash-completion's folder.\n\
         _plaintap() {{\n    local current=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}}\n    \
         COMPREPLY=()\n    if ((COMP_CWORD == 1)); then\n        \
         mapfile -t COMPREPLY < <(compgen -W '{} --help --version' -- \"$current\")\n        return\n    fi\n    \
         case \"${{COMP_WORDS[1]}} $before\" in\n",
        names.join(" ")
    );
    let mut free = vec![];
    for command in &info.commands {
        for flag in command.command.flags {
            let Some(arg_name) = arg_name(flag) else { continue };
            let patterns = spellings(flag).into_iter().map(|flag| format!("'{} {flag}'", command.name));
            let choice = match values(arg_name) {
                Some(values) => format!("-W '{values}'"),
                None if is_file(arg_name) => "-f".to_owned(),
                None => {
                    free.extend(patterns);
                    continue;
                }
            };
            let patterns = patterns.collect::<Vec<_>>().join(" | ");
            let _ = writeln!(
                script,
                "        {patterns})\n            mapfile -t COMPREPLY < <(compgen {choice} -- \"$current\")\n            return ;;"
            );
        }
    }
    // There is nothing to offer, and no flag belongs here.
    let _ = writeln!(script, "        {}) return ;;", free.join(" | "));
    script += "    esac\n    case ${COMP_WORDS[1]} in\n";
    for command in &info.commands {
        let flags: Vec<String> = command.command.flags.iter().flat_map(spellings).collect();
        let files = command.command.positionals.iter().any(|positional| is_file(positional.name));
        let _ = writeln!(
            script,
            "        {}) mapfile -t COMPREPLY < <(compgen {}-W '{}' -- \"$current\") ;;",
            command.name,
            if files { "-f " } else { "" },
            flags.join(" ")
        );
    }
    script + "    esac\n}\ncomplete -o filenames -F _plaintap plaintap\n"
}

fn zsh(info: &CommandInfoWithArgs) -> String {
    let mut script =
        "#compdef plaintap\n# Completion of plaintap for zsh: put this into a folder of $fpath.\n\
                      local -a commands=(\n"
            .to_owned();
    let quoted = |text: &str| text.replace('\'', "'\\''");
    for command in &info.commands {
        let what = first_sentence(command.command.description).replace(':', "\\:");
        let _ = writeln!(script, "    '{}:{}'", command.name, quoted(&what));
    }
    script +=
        ")\nif ((CURRENT == 2)); then\n    _describe command commands\n    return\nfi\ncase $words[2] in\n";
    for command in &info.commands {
        let _ =
            write!(script, "    {})\n        shift words; ((CURRENT--))\n        _arguments", command.name);
        for flag in command.command.flags {
            let what = flag.description.replace('[', "\\[").replace(']', "\\]").replace(':', "\\:");
            let value = match arg_name(flag) {
                None => String::new(),
                Some(name) if is_file(name) => format!(":{name}:_files"),
                Some(name) => match values(name) {
                    Some(values) => format!(":{name}:({values})"),
                    None => format!(":{name}: "),
                },
            };
            for spelling in spellings(flag) {
                let _ = write!(script, " \\\n            '{spelling}[{}]{value}'", quoted(&what));
            }
        }
        for positional in command.command.positionals {
            let action = if is_file(positional.name) { "_files" } else { " " };
            let _ = write!(script, " \\\n            '::{}:{action}'", positional.name);
        }
        script += "\n        ;;\n";
    }
    script + "esac\n"
}

fn fish(info: &CommandInfoWithArgs) -> String {
    let quoted = |text: &str| text.replace('\\', "\\\\").replace('\'', "\\'");
    let mut script =
        "# Completion of plaintap for fish: put this into ~/.config/fish/completions.\ncomplete -c plaintap -f\n"
            .to_owned();
    for command in &info.commands {
        let name = command.name;
        let what = quoted(&first_sentence(command.command.description));
        let _ = writeln!(script, "complete -c plaintap -n __fish_use_subcommand -a {name} -d '{what}'");
        for flag in command.command.flags {
            let short = flag.short.map(|short| format!(" -s {short}")).unwrap_or_default();
            let value = match arg_name(flag) {
                None => String::new(),
                Some(name) if is_file(name) => " -r -F".to_owned(),
                Some(name) => match values(name) {
                    Some(values) => format!(" -x -a '{values}'"),
                    None => " -x".to_owned(),
                },
            };
            let _ = writeln!(
                script,
                "complete -c plaintap -n '__fish_seen_subcommand_from {name}'{short} -l {}{value} -d '{}'",
                flag.long.trim_start_matches('-'),
                quoted(flag.description)
            );
        }
        if command.command.positionals.iter().any(|positional| is_file(positional.name)) {
            let _ = writeln!(script, "complete -c plaintap -n '__fish_seen_subcommand_from {name}' -F");
        }
    }
    script
}

fn first_sentence(text: &str) -> String {
    let end = text.find(". ").or_else(|| text.find(": ")).unwrap_or(text.len());
    text[..end].trim_end_matches('.').trim().to_owned()
}

fn man(info: &CommandInfoWithArgs) -> String {
    let mut page = format!(".TH PLAINTAP 1 \"\" \"plaintap {}\"\n", env!("CARGO_PKG_VERSION"));
    let _ = write!(page, ".SH NAME\nplaintap \\- {}\n", roff(&first_sentence(info.description)));
    page += ".SH SYNOPSIS\n";
    for command in &info.commands {
        let _ = write!(page, ".B plaintap {}\n[flags]", command.name);
        for positional in command.command.positionals {
            let name = roff(positional.name);
            let required = positional.optionality == Optionality::Required;
            page += &if required { format!(" {name}") } else { format!(" [{name}]") };
        }
        page += "\n.br\n";
    }
    for command in &info.commands {
        let _ = write!(
            page,
            ".SH PLAINTAP {}\n{}\n",
            command.name.to_uppercase(),
            roff(command.command.description)
        );
        for positional in command.command.positionals {
            let _ = write!(page, ".TP\n.I {}\n{}\n", roff(positional.name), roff(positional.description));
        }
        for flag in command.command.flags {
            let value = arg_name(flag).map(|name| format!(" \\fI{}\\fR", roff(name))).unwrap_or_default();
            let flags = roff(&spellings(flag).join(", "));
            let _ = write!(page, ".TP\n\\fB{flags}\\fR{value}\n{}\n", roff(flag.description));
        }
        for example in command.command.examples {
            let example = example.replace("{command_name}", &format!("plaintap {}", command.name));
            let (what, how) = example.split_once('\n').unwrap_or((&example, ""));
            let _ = write!(page, ".PP\n{}\n.PP\n.RS\n.nf\n{}\n.fi\n.RE\n", roff(what), roff(how.trim()));
        }
        for note in command.command.notes {
            let _ = write!(page, ".PP\n{}\n", roff(note));
        }
    }
    page += ".SH EXIT STATUS\n";
    for code in info.error_codes {
        let _ = write!(page, ".TP\n{}\n{}\n", code.code, roff(code.description));
    }
    page
}

/// Text that roff leaves as it is.
fn roff(text: &str) -> String {
    let text = text.replace("{{", "{").replace("}}", "}").replace('\\', "\\e").replace('-', "\\-");
    let lines = text.lines().map(|line| match line.starts_with(['.', '\'']) {
        true => format!("\\&{line}"),
        false => line.to_owned(),
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_command_and_flag_is_in_all_of_them() {
        let info = args::Args::get_args_info();
        assert!(info.commands.len() > 4);
        let pages = [man(&info).replace("\\-", "-"), bash(&info), zsh(&info)];
        let fish = fish(&info);
        for command in &info.commands {
            assert!(pages.iter().all(|page| page.contains(command.name)) && fish.contains(command.name));
            for flag in command.command.flags {
                let long = flag.long.trim_start_matches('-');
                assert!(pages.iter().all(|page| page.contains(&format!("--{long}"))), "{long}");
                assert!(fish.contains(&format!("-l {long}")), "{long}");
            }
        }
    }

    #[test]
    fn no_line_of_text_is_taken_for_a_request_of_roff() {
        assert_eq!(roff(".a\n'b\n\\c --d"), "\\&.a\n\\&'b\n\\ec \\-\\-d");
    }
}
