//! `cargo xtask test`: all tests of the project, one line each, a table at the end, and a closing
//! line that tools read.
//!
//! | file | what it runs |
//! |---|---|
//! | `checks` | format, lints, unit and documentation tests: no machine needed |
//! | `guide` | the porting guide, word by word |
//! | `examples` | public functions without an example become no more |
//! | `inventory` | every file with unsafe code is accounted for |
//! | `claims` | every invariant is attacked, every claim shown, by tests that exist |
//! | `house_rules` | the rules of the house that clippy does not know |
//! | `real_xen` | guests on real Xen, good ones and broken ones, in both roles |
//! | `devices` | guests at real devices, and their effects seen from outside |
//! | `under_xl` | guests that xl creates, on an emulated dom0 or on a real one by ssh |
//! | `examine` | a guest's frame map, seen by itself and by dom0 |
//! | `endings` | that QEMU ends when the harness does, however it ends |
//! | `shape` | no function takes a tuple, no files import each other in a circle |
//! | `session` | keeps the score |

mod cases;
mod checks;
mod claims;
mod devices;
mod endings;
mod examine;
mod examples;
mod guide;
mod house_rules;
mod inventory;
mod real_xen;
mod session;
mod shape;
mod under_xl;

use anyhow::Result;

use self::guide::{Depth, follow};
use self::session::Session;
pub(crate) use self::under_xl::on_host;
use crate::ExitStatus;
use crate::cli::TestArguments;

/// Returns whether the tests of a file begin at this line.
fn begins_tests(line: &str) -> bool {
    matches!(line.trim(), "#[cfg(test)]" | "#[cfg(all(test, not(loom)))]")
}

/// Runs everything and keeps going after a failure.
///
/// # Errors
///
/// A signal asked us to end.
pub(crate) fn test(arguments: &TestArguments) -> Result<ExitStatus> {
    let mut session = Session::default();
    checks::run(&mut session)?;
    if !arguments.quick {
        session.step("whole", "porting guide, on the model", || follow(Depth::Code))?;
        real_xen::run(&mut session, arguments)?;
    }
    Ok(session.close())
}
