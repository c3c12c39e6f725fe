//! The supervisor as a process, driven over its real sockets, against a
//! scripted VMM and against real machines. The test program is all of it:
//! tests, supervisor and scripted VMM.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

mod boots;
mod client;
mod control;
mod copies;
mod ends;
mod guest;
mod machines;
mod protocol;
mod sessions;
mod vmm;
mod wiring;

use std::time::Duration;

use testkit::harness::Test;

use client::{Workspace, alive};
use vmm::{Scripted, wait_for};

const SOON: Duration = Duration::from_secs(10);

/// Tests of modules, each by its own name.
macro_rules! tests {
    ($($module:ident::$name:ident),* $(,)?) => {
        &[$((stringify!($name), $module::$name)),*]
    };
}

fn main() {
    microagent_supervisor::entry_with(&Scripted);
    let arguments: Vec<_> = std::env::args().collect();
    match arguments.get(1).map(String::as_str) {
        Some(vmm::MARKER) => guest::main(&arguments[2..]),
        Some("__launcher") => ends::launcher(&arguments[2]),
        Some("__failing") => ends::failing(&arguments[2]),
        Some("__stranger") => control::stranger(&arguments[2]),
        _ => {}
    }
    let scripted: &[Test] = tests![
        copies::files_are_copied_both_ways,
        copies::a_copy_that_is_cut_is_no_copy,
        copies::a_hostile_guest_ends_with_its_copy,
        copies::nothing_is_copied_where_nothing_runs,
        sessions::a_stream_to_the_guest_serves_one_session_after_the_other,
        ends::a_test_that_fails_leaves_no_supervisor,
        sessions::a_workload_runs_and_its_end_ends_the_machine,
        boots::a_supervisor_that_begins_as_a_program_anew_is_like_any_other,
        boots::a_clean_workload_ends_halted_and_the_next_boot_goes_on_counting,
        sessions::much_output_and_input_is_relayed_exactly,
        sessions::a_program_that_is_not_there_is_told_apart,
        boots::one_shot_requests_are_answered_with_one_line,
        boots::a_bad_launch_is_refused_by_name_and_leaves_nothing,
        boots::a_driver_that_cannot_launch_fails_the_boot_twice,
        boots::a_process_that_waits_for_a_failed_boot_is_told_why,
        boots::a_guest_whose_monitor_has_a_user_of_its_own_is_heard,
        boots::a_boot_that_fails_once_is_tried_again,
        boots::a_boot_that_fails_twice_is_a_failed_boot_with_the_consoles_last_words,
        control::control_commands_are_idempotent_and_true_when_answered,
        control::halt_is_clean_and_stop_is_not,
        control::a_guest_that_hears_nothing_cannot_hold_up_control,
        control::a_time_limit_holds,
        ends::ends_from_inside_are_told_apart,
        ends::a_vmm_killed_by_another_hand_is_noticed,
        ends::a_killed_supervisor_takes_the_vmm_along_and_the_next_boot_records_it,
        ends::an_owned_machine_dies_with_the_program_that_launched_it,
        ends::an_owner_that_lets_go_ends_the_machine_and_a_second_one_is_refused,
        sessions::a_workload_outlives_its_client_while_its_owner_is_there,
        sessions::a_machines_own_workload_needs_no_client,
        boots::a_workspace_has_one_machine_at_a_time,
        sessions::a_command_ends_with_its_client_and_signals_reach_it,
        sessions::sessions_are_many_but_bounded,
        control::a_subscriber_that_reads_nothing_blocks_nobody,
        control::another_user_is_turned_away,
        control::nonsense_on_the_control_socket_is_answered_and_survived,
        sessions::a_second_workload_is_refused,
        sessions::a_line_is_relayed_with_what_became_of_the_shell,
        sessions::who_gave_up_waiting_gets_nothing_run,
        ends::a_terminated_supervisor_ends_its_machine,
    ];
    let tests = [scripted, wiring::TESTS, machines::TESTS].concat();
    testkit::harness::run(&tests);
}

/// Everything the supervisor made is gone, and so is it.
fn gone(workspace: &Workspace, machine: &client::Machine) {
    wait_for(SOON, || {
        !alive(machine.launched.supervisor.pid) && !workspace.spec.runtime_dir.exists()
    });
}
