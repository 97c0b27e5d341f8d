//! plaintapd: glue between the command line and the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    plaintapd::main()
}
