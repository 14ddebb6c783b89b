//! The numbered assertions of the specification (section 8), each one test that carries its number
//! in its name.
//!
//! ASSERTIONS.md lists them.

mod a_page_state;
mod b_l1_entries;
mod c_upper_levels;
mod d_linear;
mod e_mmuext;
mod f_calls;
mod g_multicall;
mod h_memory_op;
mod i_grants;
mod j_emulated_writes;
mod k_descriptors;
mod l_initial_state;
mod m_save;
mod n_logs;
mod support;
