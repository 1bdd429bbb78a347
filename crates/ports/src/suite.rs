//! Behaviour suites that every implementation of a driven port passes.
//!
//! [`store_suite!`](crate::store_suite) makes one test of each behaviour. It takes an expression that makes a fresh,
//! empty store: a pair of whatever has to live as long as the store (a temporary directory, a schema of its own in a
//! shared database) and the store in an `Arc`.
//!
//! ```text
//! fn fresh() -> (TempDir, Arc<SqliteStore>) { … }
//! holdfast_ports::store_suite!(fresh());
//! ```
//!
//! The suites talk to the ports only, so they hold for a store that other processes use at the same time, provided
//! that those leave the fresh store alone.

pub mod checkpoints;
pub mod configuration;
pub mod dead_letters;
pub mod enrollment;
pub mod event_log;
pub mod feedback;
pub mod file;
pub mod fixtures;
pub mod job;
pub mod outbox;
pub mod query;
pub mod queue;
pub mod registry;
pub mod settings;
pub mod twin;

use crate::configuration::ConfigurationStore;
use crate::dead_letters::DeadLetterStore;
use crate::enrollment::EnrollmentStore;
use crate::file::FileStore;
use crate::job::JobStore;
use crate::outbox::OutboxStore;
use crate::query::QueryStore;
use crate::queue::C2dQueue;
use crate::registry::RegistryStore;
use crate::settings::{CheckpointStore, SessionStore, SettingsStore};
use crate::twin::TwinStore;

/// All ports of state in one store.
pub trait StateStore:
    RegistryStore
    + TwinStore
    + QueryStore
    + C2dQueue
    + SettingsStore
    + SessionStore
    + CheckpointStore
    + DeadLetterStore
    + OutboxStore
    + FileStore
    + EnrollmentStore
    + ConfigurationStore
    + JobStore
{
}

impl<S> StateStore for S where
    S: RegistryStore
        + TwinStore
        + QueryStore
        + C2dQueue
        + SettingsStore
        + SessionStore
        + CheckpointStore
        + DeadLetterStore
        + OutboxStore
        + FileStore
        + EnrollmentStore
        + ConfigurationStore
        + JobStore
{
}

/// Makes the tests of all suites of state for one store; see [`suite`](crate::suite).
#[macro_export]
macro_rules! store_suite {
    ($fresh:expr) => {
        $crate::store_suite! { @suite $fresh, registry:
            records_are_kept_whole
            an_identity_comes_with_its_twin
            entries_are_created_all_or_none
            groups_are_created_apart_from_each_other
            identities_are_listed_with_their_twins
            a_module_needs_its_device
            modules_of_a_device_are_bounded
            ids_are_case_sensitive_and_ordered_bytewise
            a_mutation_raises_the_version
            a_refused_mutation_changes_nothing
            identity_and_generation_cannot_be_mutated
            a_device_goes_with_all_that_belongs_to_it
            deletion_checks_the_version
            devices_are_listed_in_pages
            modules_are_listed_by_device
            devices_are_counted
            a_scope_finds_its_edge_device
            children_are_found_by_the_scope_of_their_parent
            connections_are_saved_without_a_version
            one_of_many_creations_wins
            concurrent_mutations_all_count
        }
        $crate::store_suite! { @suite $fresh, twin:
            twins_are_kept_whole
            a_mutation_returns_the_new_twin
            a_refused_mutation_changes_nothing
            a_missing_twin_cannot_be_changed
            twins_are_independent
            concurrent_mutations_all_count
            changes_are_seen_in_the_order_they_returned
        }
        $crate::store_suite! { @suite $fresh, query:
            queries_find_devices_and_modules_apart
            a_page_ends_where_it_is_full
            top_bounds_the_whole_result
            figures_come_in_pages
            rows_come_in_the_order_asked_for
            pages_do_not_double_or_lose_rows
            a_cursor_belongs_to_its_query
            too_many_groups_are_refused
            documents_show_waiting_messages
            conditions_target_identities
        }
        $crate::store_suite! { @suite $fresh, queue:
            sequence_numbers_count_over_the_whole_store
            messages_are_kept_whole
            messages_need_their_device
            a_queue_is_bounded
            a_queue_is_bounded_under_concurrency
            messages_come_oldest_first_and_once
            a_lock_ends
            a_token_works_until_its_message_is_locked_anew
            a_token_opens_its_own_queue_only
            complete_and_reject_remove
            abandon_raises_the_count_up_to_the_limit
            release_returns_without_counting
            a_session_releases_only_its_own
            purge_empties_one_queue
            expired_messages_are_not_delivered
            a_sweep_expires_in_all_queues
            concurrent_receivers_share_without_doubles
        }
        $crate::store_suite! { @suite $fresh, feedback:
            outcomes_make_the_feedback_asked_for
            deletion_makes_no_feedback
            a_batch_closes_when_full
            a_batch_closes_when_ripe
            a_batch_is_settled_once
            a_batch_comes_again_when_its_lock_ends
        }
        $crate::store_suite! { @suite $fresh, settings:
            policies_are_replaced_by_name
            authorities_are_replaced_by_name
            values_are_replaced_by_key
            sessions_are_stored_and_forgotten
        }
        $crate::store_suite! { @suite $fresh, checkpoints:
            the_default_group_always_exists
            groups_are_listed_by_name
            groups_are_bounded
            checkpoints_belong_to_a_reader_and_a_partition
            a_group_goes_with_its_checkpoints
        }
        $crate::store_suite! { @suite $fresh, dead_letters:
            letters_are_kept_newest_first
            the_oldest_go_when_there_are_too_many
        }
        $crate::store_suite! { @suite $fresh, outbox:
            events_are_kept_whole_and_in_order
            a_full_outbox_holds_up_changes
            a_twin_change_and_its_events_are_one
            creations_are_told_all_or_none
            groups_are_told_apart_from_each_other
            deletions_tell_of_all_who_went
            events_of_one_twin_follow_its_versions
            a_job_and_its_events_are_one
        }
        $crate::store_suite! { @suite $fresh, file:
            uploads_are_kept_whole_and_end_once
            uploads_of_a_device_are_bounded
            notifications_are_locked_and_settled
            a_notification_comes_again_when_its_lock_ends
            files_expire
        }
        $crate::store_suite! { @suite $fresh, enrollment:
            enrollments_are_kept_whole_and_found_without_case
            writes_of_enrollments_are_conditional
            enrollments_are_listed_in_pages
            registrations_belong_to_their_entry
            linked_hubs_and_policies_are_replaced_by_name
        }
        $crate::store_suite! { @suite $fresh, configuration:
            configurations_are_kept_whole
            writes_of_configurations_are_conditional
            twins_are_found_by_what_they_show
            paging_skips_nobody_while_twins_change
        }
        $crate::store_suite! { @suite $fresh, job:
            jobs_are_kept_whole
            jobs_are_listed_newest_first
            a_final_status_stays
            targets_are_added_once_and_worked_off_in_order
            results_are_recorded_once
            device_jobs_are_listed_in_pages
            what_is_left_is_finished_in_steps
            history_goes_oldest_first
        }
    };
    (@suite $fresh:expr, $suite:ident: $($name:ident)*) => {
        mod $suite {
            #[allow(unused_imports, reason = "the factory may stand there")]
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    let (_guard, store) = $fresh;
                    $crate::suite::$suite::$name(store).await;
                }
            )*
        }
    };
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crate::memory::MemoryStore;

    fn fresh() -> ((), Arc<MemoryStore>) {
        ((), Arc::new(MemoryStore::new()))
    }

    crate::store_suite!(fresh());
}
