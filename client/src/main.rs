//! The program `plaintap`: glue between the command line and the library.
#![forbid(unsafe_code)]

use std::{
    env,
    error::Error,
    io::{self, Write},
    process::ExitCode,
};

use plaintap::{
    adb,
    args::{self, Command, Parsed},
    extcap, inspect, note, record, replay, serve, shell, watch,
};

fn main() -> ExitCode {
    let mut args = env::args_os();
    let extcap = extcap::is_called(args.next().as_deref()).then(|| "extcap".to_owned());
    let args = args.map(|arg| arg.to_string_lossy().into_owned());
    let command = match args::parse(extcap.into_iter().chain(args)) {
        Ok(Parsed::Run(command)) => *command,
        Ok(Parsed::Print(text)) => {
            print(&text);
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            note::note(&error.to_string());
            return ExitCode::from(2);
        }
    };
    match run(command) {
        Ok(code) => code,
        Err(error) => {
            note::note(&note::chain(&*error));
            ExitCode::from(if is_usage(&*error) { 2 } else { 1 })
        }
    }
}

/// Whether the command line was wrong, by what showed only later.
fn is_usage(error: &(dyn Error + 'static)) -> bool {
    #[cfg(feature = "relay")]
    if let Some(error) = error.downcast_ref::<plaintap::relay::Error>() {
        return error.is_usage();
    }
    error.downcast_ref::<record::Error>().is_some_and(record::Error::is_usage)
}

/// Who closed our stdout has no use for the text.
fn print(text: &str) {
    let _ = io::stdout().write_all(text.as_bytes());
}

fn run(command: Command) -> Result<ExitCode, Box<dyn Error>> {
    match command {
        Command::Watch(args) => watch::run(args)?,
        Command::Adb(args) => adb::run(args)?,
        Command::Doctor(args) => return Ok(ExitCode::from(adb::doctor::run(&args, print)?)),
        Command::Inspect(args) => inspect::run(args)?,
        Command::Record(args) => record::run(args)?,
        #[cfg(feature = "relay")]
        Command::Relay(args) => plaintap::relay::run(args)?,
        Command::Replay(args) => replay::run(args)?,
        Command::Serve(args) => serve::run(args)?,
        Command::Generate(args) => print(&shell::run(args)?),
        Command::Extcap(args) => print(&extcap::run(args)?),
    }
    Ok(ExitCode::SUCCESS)
}
