//! What workspaces cost, for a monitoring system: the text that Prometheus and its kin read.

use std::fmt::Write as _;

use microagent_protocol::{MachineStats, State, WorkspaceName};
use serde::Serialize;

use crate::{error::Result, parallel, workspaces::Workspaces};

/// How many supervisors are asked at a time: each takes a short interval to answer.
const AT_ONCE: usize = 16;

/// One look at workspaces.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Metrics {
    /// Each of them.
    pub workspaces: Vec<WorkspaceMetrics>,
}

/// One look at one workspace.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct WorkspaceMetrics {
    /// Its name.
    pub workspace: WorkspaceName,
    /// Its state.
    pub state: State,
    /// What its machine costs, while there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stats: Option<MachineStats>,
}

/// A metric of a machine: its name, its kind, what it says, and where it is had from.
type Metric = (
    &'static str,
    &'static str,
    &'static str,
    fn(&MachineStats) -> Option<f64>,
);

/// Names end in their unit, and counters in `_total`, as is the custom.
const METRICS: &[Metric] = &[
    (
        "microagent_vmm_cpu_seconds_total",
        "counter",
        "Processor time of the VMM since its start.",
        |stats| Some(stats.cpu_ms as f64 / 1000.0),
    ),
    (
        "microagent_vmm_resident_memory_bytes",
        "gauge",
        "Resident memory of the VMM, the guest's in it.",
        |stats| Some(stats.memory_bytes as f64),
    ),
    (
        "microagent_supervisor_resident_memory_bytes",
        "gauge",
        "Resident memory of the supervisor.",
        |stats| Some(stats.supervisor_memory_bytes as f64),
    ),
    (
        "microagent_vmm_read_bytes_total",
        "counter",
        "Bytes the VMM read from disks.",
        |stats| stats.io_read_bytes.map(|bytes| bytes as f64),
    ),
    (
        "microagent_vmm_written_bytes_total",
        "counter",
        "Bytes the VMM wrote to disks.",
        |stats| stats.io_write_bytes.map(|bytes| bytes as f64),
    ),
    (
        "microagent_sessions",
        "gauge",
        "Commands, lines and copies open in the guest.",
        |stats| Some(f64::from(stats.sessions)),
    ),
    (
        "microagent_connections",
        "gauge",
        "Connections open over published ports and mediation routes.",
        |stats| Some(f64::from(stats.connections)),
    ),
];

impl Metrics {
    /// The text format of Prometheus, version 0.0.4.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        let head = |text: &mut String, name: &str, kind: &str, help: &str| {
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        };
        let state = "microagent_workspace_state";
        head(
            &mut text,
            state,
            "gauge",
            "1 for the state the workspace is in.",
        );
        for one in &self.workspaces {
            let (name, is) = (&one.workspace, one.state);
            let _ = writeln!(text, "{state}{{workspace=\"{name}\",state=\"{is}\"}} 1");
        }
        for (name, kind, help, value) in METRICS {
            let values: Vec<_> = self
                .workspaces
                .iter()
                .filter_map(|one| Some((&one.workspace, value(one.stats.as_ref()?)?)))
                .collect();
            if values.is_empty() {
                continue;
            }
            head(&mut text, name, kind, help);
            for (workspace, value) in values {
                let _ = writeln!(text, "{name}{{workspace=\"{workspace}\"}} {value}");
            }
        }
        text
    }
}

/// Looks at `names`, or at every workspace. One that ends meanwhile is told without a machine.
pub(crate) fn look(workspaces: &Workspaces<'_>, names: &[String]) -> Result<Metrics> {
    let names = match names {
        [] => workspaces
            .names()?
            .iter()
            .map(ToString::to_string)
            .collect(),
        some => some.to_vec(),
    };
    let looks = parallel::map(&names, AT_ONCE, |name| {
        let workspace = workspaces.open(name)?;
        let state = workspace.state()?;
        let stats = state.is_live().then(|| workspace.stats()).transpose();
        Ok(WorkspaceMetrics {
            workspace: workspace.name().clone(),
            // A machine that is starting or ending may have nothing to look at.
            state: workspace.state()?,
            stats: stats.unwrap_or_default(),
        })
    });
    let workspaces = looks.into_iter().collect::<Result<_>>()?;
    Ok(Metrics { workspaces })
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    fn metrics(stats: Option<MachineStats>) -> Metrics {
        let one = WorkspaceMetrics {
            workspace: "web".parse().unwrap(),
            state: State::Running,
            stats,
        };
        Metrics {
            workspaces: vec![one],
        }
    }

    #[test]
    fn each_metric_is_told_of_once_and_then_its_values() {
        let text = metrics(Some(MachineStats {
            sampled_at: SystemTime::UNIX_EPOCH.into(),
            pid: 7,
            cpu_ms: 1500,
            cpu_percent: None,
            memory_bytes: 1 << 40,
            supervisor_memory_bytes: 5,
            io_read_bytes: None,
            io_write_bytes: Some(6),
            sessions: 2,
            connections: 0,
        }))
        .text();
        for line in [
            "microagent_workspace_state{workspace=\"web\",state=\"running\"} 1",
            "# TYPE microagent_vmm_cpu_seconds_total counter",
            "microagent_vmm_cpu_seconds_total{workspace=\"web\"} 1.5",
            "microagent_vmm_resident_memory_bytes{workspace=\"web\"} 1099511627776",
            "microagent_connections{workspace=\"web\"} 0",
        ] {
            assert_eq!(
                text.lines().filter(|it| *it == line).count(),
                1,
                "{line}\n{text}"
            );
        }
        // What the host does not count is not told of, not even by name.
        assert!(!text.contains("read_bytes"));
        let told = |prefix: &str| text.lines().filter(|line| line.starts_with(prefix)).count();
        assert_eq!((told("# HELP "), told("# TYPE ")), (7, 7));
        let samples = testkit::prometheus::read(&text);
        assert_eq!(samples.len(), 7);
    }

    #[test]
    fn a_workspace_at_rest_has_a_state_and_no_machine() {
        let text = metrics(None).text();
        assert_eq!(testkit::prometheus::read(&text).len(), 1, "{text}");
    }

    #[test]
    fn many_workspaces_are_more_values_of_the_same_metrics() {
        let workspaces = (0..100).map(|number| WorkspaceMetrics {
            workspace: format!("w-{number}").parse().unwrap(),
            state: State::ALL[number % State::ALL.len()],
            stats: None,
        });
        let text = Metrics {
            workspaces: workspaces.collect(),
        }
        .text();
        let samples = testkit::prometheus::read(&text);
        // A workspace's state is one value, not one for each state there is.
        assert_eq!(samples.len(), 100);
        assert!(samples.iter().all(|one| one.labels.len() == 2));
    }
}
