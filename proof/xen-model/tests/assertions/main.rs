//! What only the model can show of the numbered assertions of docs/testing-assertions.md: words of
//! frames, lines of the log, what other domains and debug builds see, save and restore.
//!
//! What a guest can observe is asserted in the `conformance` crate, on the model and on real Xen.
//! A test's name begins with the numbers that it shows a part of.

mod a_page_state;
mod b_l1_entries;
mod c_upper_levels;
mod e_mmuext;
mod f_calls;
mod h_memory_op;
mod i_grants;
mod j_emulated_writes;
mod l_initial_state;
mod m_save;
mod n_logs;
mod support;
