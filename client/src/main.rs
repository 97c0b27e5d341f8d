//! The program `plaintap`: glue between the command line and the library.
#![forbid(unsafe_code)]

use std::{
    env,
    error::Error,
    io::{self, Write},
    process::ExitCode,
};

use plaintap::{
    args::{self, Command, Parsed},
    inspect, note, record, replay, watch,
};

fn main() -> ExitCode {
    let args = env::args_os().skip(1).map(|arg| arg.to_string_lossy().into_owned());
    let command = match args::parse(args) {
        Ok(Parsed::Run(command)) => command,
        Ok(Parsed::Print(text)) => {
            // Who closed our stdout has no use for the text.
            let _ = io::stdout().write_all(text.as_bytes());
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            note::note(&error.to_string());
            return ExitCode::from(2);
        }
    };
    match run(command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            note::note(&note::chain(&*error));
            ExitCode::from(1)
        }
    }
}

fn run(command: Command) -> Result<(), Box<dyn Error>> {
    match command {
        Command::Watch(args) => watch::run(args)?,
        Command::Inspect(args) => inspect::run(args)?,
        Command::Record(args) => record::run(args)?,
        Command::Replay(args) => replay::run(args)?,
    }
    Ok(())
}
