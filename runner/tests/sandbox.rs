#![allow(missing_docs)]
fn main() {
    kiln_runner::take_over();
}
