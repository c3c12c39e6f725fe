//! `microagent spec schema`.

use microagent::Spec;

use crate::output;

/// Prints the schema as it is, whatever form results have: it is JSON already.
pub(crate) fn run() -> u8 {
    output::to_stdout(&format!("{:#}\n", Spec::schema()));
    0
}
