//! Goal: the tables of edge.md 3.4 and ADR 0070. Method: one container, one situation, one verdict.

use super::*;

fn container(state: ContainerState, exit_code: i64) -> Container {
    Container {
        name: "m".to_owned(),
        id: "1".to_owned(),
        image: "x:1".to_owned(),
        image_id: String::new(),
        labels: BTreeMap::new(),
        state,
        health: None,
        exit_code,
        started_at: None,
        finished_at: None,
        pid: None,
    }
}

fn at(policy: RestartPolicy, container: &Container, count: u32, now: i64) -> Verdict {
    let record = RestartRecord {
        count,
        ..RestartRecord::default()
    };
    let situation = Situation {
        desired: DesiredStatus::Running,
        policy,
        container,
        record: &record,
        since: 0,
        rebooted: false,
    };
    judge(&situation, &RestartRules::default(), now)
}

use RestartPolicy::{Always, Never, OnFailure, OnUnhealthy};

#[test]
fn pauses_double_up_to_five_minutes() {
    let failed = container(ContainerState::Exited, 1);
    for (count, seconds) in [10, 20, 40, 80, 160, 300, 300, 300].into_iter().enumerate() {
        let count = u32::try_from(count).unwrap();
        for policy in [OnFailure, OnUnhealthy, Always] {
            let due = seconds * 1000;
            let waiting = at(policy, &failed, count, due - 1);
            assert_eq!(waiting.status, RuntimeStatus::Backoff);
            assert_eq!(waiting.next, Next::Wait(due), "restart {count}");
            assert_eq!(
                at(policy, &failed, count, due).next,
                Next::Start { counted: true }
            );
        }
    }
    assert_eq!(
        RestartRules::default().cool_off(u32::MAX),
        Duration::from_secs(300)
    );
}

#[test]
fn failed_after_twenty() {
    let failed = container(ContainerState::Exited, 1);
    for policy in [OnFailure, OnUnhealthy, Always] {
        assert_eq!(
            at(policy, &failed, 19, i64::MAX / 2).next,
            Next::Start { counted: true }
        );
        let verdict = at(policy, &failed, 20, i64::MAX / 2);
        assert_eq!(
            (verdict.status, verdict.next),
            (RuntimeStatus::Failed, Next::Rest)
        );
    }
}

#[test]
fn policies_after_an_end() {
    let good = container(ContainerState::Exited, 0);
    let bad = container(ContainerState::Exited, 2);
    let never = at(Never, &good, 0, 1_000_000);
    assert_eq!((never.status, never.next), (RuntimeStatus::Stopped, Next::Rest));
    let never = at(Never, &bad, 0, 1_000_000);
    assert_eq!((never.status, never.next), (RuntimeStatus::Failed, Next::Rest));
    for policy in [OnFailure, OnUnhealthy] {
        // The first good end is followed by a start at once, the second after a pause, and it never fails for good.
        assert_eq!(at(policy, &good, 0, 0).next, Next::Start { counted: true });
        assert_eq!(at(policy, &good, 1, 0).next, Next::Wait(10_000));
        assert_eq!(at(policy, &good, 4, 0).next, Next::Wait(80_000));
        assert_eq!(
            at(policy, &good, 500, 300_000).next,
            Next::Start { counted: true }
        );
    }
    assert_eq!(at(Always, &good, 0, 0).next, Next::Wait(10_000));
    assert_eq!(at(Always, &good, 20, 0).status, RuntimeStatus::Failed);
}

#[test]
fn health_checks() {
    let mut sick = container(ContainerState::Running, 0);
    sick.health = Some(Health::Unhealthy);
    for policy in [Never, OnFailure] {
        let verdict = at(policy, &sick, 0, i64::MAX / 2);
        assert_eq!(
            (verdict.status, verdict.next),
            (RuntimeStatus::Unhealthy, Next::Rest)
        );
    }
    for policy in [OnUnhealthy, Always] {
        assert_eq!(at(policy, &sick, 0, 9_999).next, Next::Wait(10_000));
        assert_eq!(at(policy, &sick, 0, 10_000).next, Next::Restart { counted: true });
        assert_eq!(at(policy, &sick, 20, i64::MAX / 2).status, RuntimeStatus::Failed);
    }
    sick.health = Some(Health::Starting);
    assert_eq!(at(Always, &sick, 0, 0).status, RuntimeStatus::Running);
}

#[test]
fn states_of_the_engine() {
    for (state, code, status, next) in [
        (ContainerState::Running, 0, RuntimeStatus::Running, Next::Rest),
        (
            ContainerState::Created,
            0,
            RuntimeStatus::Stopped,
            Next::Start { counted: false },
        ),
        (
            ContainerState::Paused,
            0,
            RuntimeStatus::Stopped,
            Next::Restart { counted: false },
        ),
        (ContainerState::Restarting, 0, RuntimeStatus::Stopped, Next::Rest),
        (ContainerState::Removing, 1, RuntimeStatus::Failed, Next::Rest),
        (ContainerState::Dead, 0, RuntimeStatus::Dead, Next::Discard),
        (ContainerState::Unknown, 0, RuntimeStatus::Unknown, Next::Rest),
    ] {
        let verdict = at(Never, &container(state, code), 0, 0);
        assert_eq!((verdict.status, verdict.next), (status, next), "{state:?}");
    }
}

#[test]
fn well_again_after_ten_minutes() {
    let running = container(ContainerState::Running, 0);
    assert_eq!(at(Always, &running, 3, 599_999).next, Next::Wait(600_000));
    assert_eq!(at(Always, &running, 3, 600_000).next, Next::Forget);
    assert_eq!(at(Always, &running, 0, 600_000).next, Next::Rest);
}

#[test]
fn wanted_stopped() {
    let judge_stopped = |container: &Container| {
        let record = RestartRecord::default();
        let situation = Situation {
            desired: DesiredStatus::Stopped,
            policy: Always,
            container,
            record: &record,
            since: 0,
            rebooted: true,
        };
        judge(&situation, &RestartRules::default(), 0)
    };
    let verdict = judge_stopped(&container(ContainerState::Running, 0));
    assert_eq!(verdict.next, Next::TurnOff);
    let verdict = judge_stopped(&container(ContainerState::Exited, 143));
    assert_eq!(
        (verdict.status, verdict.next),
        (RuntimeStatus::Stopped, Next::Rest)
    );
    assert_eq!(
        judge_stopped(&container(ContainerState::Created, 0)).next,
        Next::Rest
    );
}

#[test]
fn turned_on_again_without_a_pause() {
    let mut restarts = Restarts::new(RestartFile::default(), "");
    restarts.wanted_stopped("m");
    let ended = container(ContainerState::Exited, 137);
    let record = restarts.record("m");
    let situation = Situation {
        desired: DesiredStatus::Running,
        policy: OnUnhealthy,
        container: &ended,
        record: &record,
        since: 0,
        rebooted: false,
    };
    assert_eq!(judge(&situation, &RestartRules::default(), 0).next, Next::TurnOn);
    restarts.started("m", false, Timestamp::from_seconds(1));
    assert!(!restarts.record("m").stopped);
}

#[test]
fn ends_before_this_run_are_told_by_the_wall_clock_if_it_makes_sense() {
    let wall = Timestamp::from_seconds(2_000_000);
    let mut ended = container(ContainerState::Exited, 1);
    ended.finished_at = Some(wall.minus(Duration::from_secs(4)));
    let mut restarts = Restarts::new(RestartFile::default(), "");
    restarts.see([&ended].into_iter(), wall, 500);
    assert_eq!(restarts.since("m"), 500 - 4_000);
    // Set back by years: the end lies in the future, so the pause is over.
    let mut restarts = Restarts::new(RestartFile::default(), "");
    restarts.see([&ended].into_iter(), Timestamp::from_seconds(1), 500);
    let due = restarts.since("m").saturating_add(300_000);
    assert!(due < 0, "restart now");
    // Set forward by years: over as well.
    let mut restarts = Restarts::new(RestartFile::default(), "");
    restarts.see([&ended].into_iter(), Timestamp::from_seconds(2_000_000_000), 500);
    assert!(restarts.since("m").saturating_add(300_000) < 0);
    // Seen while running, the wall clock has no say.
    let running = container(ContainerState::Running, 0);
    let mut restarts = Restarts::new(RestartFile::default(), "");
    restarts.see([&running].into_iter(), wall, 500);
    restarts.see([&ended].into_iter(), Timestamp::from_seconds(1), 9_000);
    assert_eq!(restarts.since("m"), 9_000);
    restarts.see([&ended].into_iter(), wall, 12_000);
    assert_eq!(restarts.since("m"), 9_000, "nothing has changed");
}

#[test]
fn a_machine_that_was_switched_off_is_no_failure_of_modules() {
    let kept = RestartFile {
        boot: "first".to_owned(),
        modules: BTreeMap::from([(
            "m".to_owned(),
            RestartRecord {
                count: 7,
                ..RestartRecord::default()
            },
        )]),
    };
    let ended = container(ContainerState::Exited, 255);
    let wall = Timestamp::from_seconds(2_000_000);
    let mut same = Restarts::new(kept.clone(), "first");
    same.see([&ended].into_iter(), wall, 0);
    assert!(!same.rebooted("m"));
    let mut again = Restarts::new(kept, "second");
    again.see([&ended].into_iter(), wall, 0);
    assert!(again.rebooted("m"));
    let record = again.record("m");
    let situation = Situation {
        desired: DesiredStatus::Running,
        policy: OnUnhealthy,
        container: &ended,
        record: &record,
        since: 0,
        rebooted: true,
    };
    let next = judge(&situation, &RestartRules::default(), 0).next;
    assert_eq!(next, Next::Start { counted: false });
    again.started("m", false, wall);
    again.see([&ended].into_iter(), wall, 1);
    assert!(!again.rebooted("m"), "once only");
    assert_eq!(again.take_changes().unwrap().boot, "second");
}

#[test]
fn records_are_kept_and_read_again() {
    let mut restarts = Restarts::new(RestartFile::default(), "b");
    let _ = restarts.take_changes();
    restarts.started("m", true, Timestamp::from_seconds(5));
    restarts.started("m", true, Timestamp::from_seconds(6));
    let file = restarts.take_changes().unwrap();
    assert!(restarts.take_changes().is_none());
    let text = serde_json::to_string(&file).unwrap();
    let again = Restarts::new(serde_json::from_str(&text).unwrap(), "b");
    assert_eq!(again.record("m").count, 2);
    assert_eq!(again.record("m").last, Timestamp::from_seconds(6));
}
