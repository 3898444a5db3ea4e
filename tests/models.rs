//! One suite over all models and pollers: what any server must do, done under each. The cases are tests of their own under the
//! default model; here they run once more for each of the others.

use crate::harness::how::How;
use crate::{basics, client_bounds, crashes, faults, files, files_routes, overload, reload, slow_peers, stopping};

/// A case by its name.
type Case = (&'static str, fn());

macro_rules! cases {
    ($($module:ident: $($name:ident),+;)+) => {
        &[$($((concat!(stringify!($module), "::", stringify!($name)), $module::$name as fn())),+),+]
    };
}

/// HTTP, files, bounds, timeouts.
const SERVING: &[Case] = cases! {
    basics: a_fixed_response_has_its_status_type_body_and_a_date, files_come_with_type_length_and_validators,
        a_directory_gives_its_index_and_without_one_nothing, head_is_get_without_the_body, a_redirect_names_its_target,
        a_connection_carries_many_requests_and_pipelined_ones_are_answered_in_order,
        a_request_in_pieces_is_one_request, connection_close_is_honoured_and_announced,
        a_client_that_sends_no_more_still_gets_its_answers, http_1_0_closes_unless_asked_to_keep_the_connection,
        expect_100_continue_is_answered_before_the_body, bodies_by_length_and_in_chunks_are_read_to_their_end,
        an_oversized_head_gets_431_and_a_close, an_oversized_body_gets_413_and_a_close,
        conditional_requests_spare_the_body, one_byte_range_is_served_and_what_is_beyond_the_file_is_416,
        nothing_outside_the_root_is_served_however_it_is_written,
        unix_sockets_and_ipv6_addresses_are_listened_on_beside_ipv4,
        the_access_log_has_a_whole_line_for_each_request;
    client_bounds: the_last_request_that_a_connection_may_carry_is_answered_with_a_close,
        a_head_a_target_and_a_body_are_bounded_to_the_byte;
    files: a_stream_decodes_to_the_file_for_whoever_takes_it;
    files_routes: a_listing_shows_what_may_be_seen_and_escapes_it;
    overload: the_oldest_idle_connections_make_room_for_new_ones;
};

/// The same, of what takes its time and no processor's.
const WAITING: &[Case] = cases! {
    basics: slow_heads_and_idle_connections_are_ended;
    files: a_file_that_changes_is_seen_by_the_next_request, a_sidecar_is_seen_as_it_comes_changes_ages_and_goes;
    slow_peers: a_body_that_trickles_below_its_rate_is_answered_408,
        a_response_that_is_read_below_its_rate_is_ended;
};

/// Faults, stops, reloads, deaths.
const SUPERVISION: &[Case] = cases! {
    crashes: a_death_from_outside_blames_nobody;
    faults: a_segmentation_fault_costs_its_request_a_500_and_is_reported_with_a_backtrace,
        a_panic_costs_its_request_a_500_and_not_even_a_worker;
    reload: an_idle_connection_lives_through_a_reload_and_gets_the_new_answer, a_half_sent_request_lives_through_a_reload,
        a_response_that_runs_during_a_reload_ends_as_it_began;
    stopping: a_stop_is_announced_before_it_begins, who_was_let_in_before_a_stop_is_answered;
};

/// What the main loop does by its poller where each connection has a thread or a process that waits by itself, or where there is one at a
/// time.
const ADMITTING: &[Case] = cases! {
    basics: a_fixed_response_has_its_status_type_body_and_a_date,
        a_connection_carries_many_requests_and_pipelined_ones_are_answered_in_order,
        unix_sockets_and_ipv6_addresses_are_listened_on_beside_ipv4;
    overload: the_oldest_idle_connections_make_room_for_new_ones;
    reload: a_half_sent_request_lives_through_a_reload;
    stopping: who_was_let_in_before_a_stop_is_answered;
};

/// Cases that make no sense under a model, and why.
const SKIPPED: &[(&str, &str, &str)] = &[
    (
        "process",
        "faults::a_segmentation_fault_costs_its_request_a_500_and_is_reported_with_a_backtrace",
        NO_WORKER_DIES,
    ),
    ("sync", "files::a_stream_decodes_to_the_file_for_whoever_takes_it", ONE_AT_A_TIME),
    ("sync", "overload::the_oldest_idle_connections_make_room_for_new_ones", ONE_AT_A_TIME),
    ("sync", "faults::a_segmentation_fault_costs_its_request_a_500_and_is_reported_with_a_backtrace", ONE_AT_A_TIME),
    ("sync", "reload::an_idle_connection_lives_through_a_reload_and_gets_the_new_answer", ONE_AT_A_TIME),
    ("sync", "stopping::a_stop_is_announced_before_it_begins", ONE_AT_A_TIME),
    ("sync", "faults::a_panic_costs_its_request_a_500_and_not_even_a_worker", ONE_AT_A_TIME),
];
const NO_WORKER_DIES: &str = "the process of the connection dies, and no worker";
const ONE_AT_A_TIME: &str = "a client keeps a connection while another wants to be served by the same worker";

/// Runs `cases` one after the other under a model and a poller, and tells which of them it is if one fails.
fn play(model: &str, poller: &str, cases: &[Case]) {
    for (name, case) in cases {
        if let Some((.., why)) = SKIPPED.iter().find(|(of, what, _)| *of == model && what == name) {
            println!("{name} under {model} is skipped: {why}");
            continue;
        }
        println!("{name} under {model} and {poller}");
        How::new(model, poller).run(case);
    }
}

macro_rules! models {
    ($($module:ident: $model:literal, $poller:literal;)+) => {$(
        mod $module {
            #[test]
            fn serves() {
                std::thread::scope(|scope| {
                    // Each waits for itself.
                    for case in super::WAITING {
                        scope.spawn(|| super::play($model, $poller, std::slice::from_ref(case)));
                    }
                    super::play($model, $poller, super::SERVING);
                });
            }

            #[test]
            fn is_supervised() {
                super::play($model, $poller, super::SUPERVISION);
            }
        }
    )+};
}

models! {
    reactor_poll: "reactor", "poll";
    reactor_select: "reactor", "select";
    reactor_pool: "reactor-pool", "epoll";
    reactor_pool_poll: "reactor-pool", "poll";
    reactor_pool_select: "reactor-pool", "select";
    multi_reactor: "multi-reactor", "epoll";
    multi_reactor_poll: "multi-reactor", "poll";
    multi_reactor_select: "multi-reactor", "select";
    thread: "thread", "epoll";
    process: "process", "epoll";
    sync: "sync", "epoll";
    coroutine: "coroutine", "epoll";
    uring: "uring", "epoll";
}

macro_rules! admitting {
    ($($name:ident: $model:literal, $poller:literal;)+) => {$(
        #[test]
        fn $name() {
            play($model, $poller, ADMITTING);
        }
    )+};
}

admitting! {
    thread_admits_by_poll: "thread", "poll";
    thread_admits_by_select: "thread", "select";
    process_admits_by_poll: "process", "poll";
    process_admits_by_select: "process", "select";
    sync_admits_by_poll: "sync", "poll";
    sync_admits_by_select: "sync", "select";
}
