//! Asking the user's policy from the packet loop without waiting for ever: the other half of `python/lb/backends/asking.py`, which says why.
//!
//! The loop's thread never takes the GIL here: it leaves its question, and waits on a condition until the deadline.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use flowlb_core::snapshot::Question;
use pyo3::prelude::*;

/// The user's function. Shared, not cloned: that would take the GIL.
pub type Function = Arc<Py<PyAny>>;

/// A question that outlives its packet.
struct Asked {
    function: Function,
    service: String,
    client: IpAddr,
    client_port: u16,
    candidates: Vec<String>,
}

/// Where the one question stands.
enum Step {
    Idle,
    Asked(Asked),
    Working,
    Answered(Option<String>),
    /// Given up, and its answer has not come yet.
    Abandoned,
    Closed,
}

struct Shared {
    step: Mutex<Step>,
    changed: Condvar,
    live: AtomicBool,
    answering: AtomicBool,
}

/// One question at a time, between the packet loop and the thread that answers.
#[pyclass(module = "lb._core", frozen)]
pub struct Questions(Arc<Shared>);

/// The data path's end of it; closes it when dropped.
pub struct Asker(Arc<Shared>);

impl Default for Asker {
    fn default() -> Self {
        Self(Arc::new(Shared {
            step: Mutex::new(Step::Idle),
            changed: Condvar::new(),
            live: AtomicBool::new(false),
            answering: AtomicBool::new(false),
        }))
    }
}

impl Drop for Asker {
    /// Let the thread that answers end. Not while the interpreter does: the thread would want the GIL, and waits as well as it ends.
    fn drop(&mut self) {
        if Python::try_attach(|_| ()).is_some() {
            *self.0.lock() = Step::Closed;
            self.0.changed.notify_all();
        }
    }
}

impl Asker {
    /// Say whether a loop runs from now on: only then deadlines hold.
    pub fn set_live(&self, live: bool) {
        self.0.live.store(live, Ordering::Relaxed);
    }

    /// The function that the core calls for a user's function. Starts the thread that answers, once.
    pub fn function(
        &self,
        py: Python<'_>,
        function: Py<PyAny>,
    ) -> PyResult<flowlb_core::snapshot::AskFunction> {
        if !self.0.answering.swap(true, Ordering::Relaxed) {
            let questions = Bound::new(py, Questions(Arc::clone(&self.0)))?;
            py.import("lb.backends.asking")?
                .call_method1("start_answering", (questions,))?;
        }
        let (shared, function) = (Arc::clone(&self.0), Arc::new(function));
        Ok(Arc::new(move |question: &Question<'_>| {
            if shared.live.load(Ordering::Relaxed) {
                shared.ask(&function, question)
            } else {
                call(&function, question)
            }
        }))
    }
}

/// Call the user's function here and now. Any failure of it is "no answer": the plan's fall-back decides, an event counts it.
fn call(function: &Function, question: &Question<'_>) -> Option<String> {
    Python::attach(|py| {
        let client = question.client.to_string();
        let arguments = (
            question.service,
            client,
            question.client_port,
            question.candidates.to_vec(),
        );
        function.call1(py, arguments).ok()?.extract(py).ok()
    })
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Step> {
        self.step.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask(&self, function: &Function, question: &Question<'_>) -> Option<String> {
        let mut step = self.lock();
        if !matches!(*step, Step::Idle) {
            return None;
        }
        *step = Step::Asked(Asked {
            function: Arc::clone(function),
            service: question.service.to_owned(),
            client: question.client,
            client_port: question.client_port,
            candidates: question
                .candidates
                .iter()
                .map(|&name| name.to_owned())
                .collect(),
        });
        self.changed.notify_all();
        let deadline = Duration::from_nanos(question.deadline_ns);
        let open = |step: &mut Step| !matches!(step, Step::Answered(_) | Step::Closed);
        let (mut step, _) = self
            .changed
            .wait_timeout_while(step, deadline, open)
            .unwrap_or_else(PoisonError::into_inner);
        let (after, answer) = match std::mem::replace(&mut *step, Step::Idle) {
            Step::Answered(answer) => (Step::Idle, answer),
            Step::Closed => (Step::Closed, None),
            // Nobody has begun with it: it is taken back.
            Step::Asked(_) => (Step::Idle, None),
            _ => (Step::Abandoned, None),
        };
        *step = after;
        answer
    }

    fn wait(&self) -> Option<Asked> {
        let idle = |step: &mut Step| !matches!(step, Step::Asked(_) | Step::Closed);
        let mut step = self
            .changed
            .wait_while(self.lock(), idle)
            .unwrap_or_else(PoisonError::into_inner);
        match std::mem::replace(&mut *step, Step::Working) {
            Step::Asked(asked) => Some(asked),
            other => {
                *step = other;
                None
            }
        }
    }
}

#[pymethods]
impl Questions {
    /// Wait for a question, without the GIL: (function, service, client, client port, candidate names). None: there will be none any more.
    #[expect(
        clippy::type_complexity,
        reason = "it is the tuple that Python's half names Question"
    )]
    fn wait(&self, py: Python<'_>) -> Option<(Py<PyAny>, String, String, u16, Vec<String>)> {
        let asked = py.detach(|| self.0.wait())?;
        let client = asked.client.to_string();
        Some((
            asked.function.clone_ref(py),
            asked.service,
            client,
            asked.client_port,
            asked.candidates,
        ))
    }

    /// Answer the question that `wait` returned last. None: no usable answer.
    #[pyo3(signature = (answer))]
    fn answer(&self, py: Python<'_>, answer: Option<String>) {
        py.detach(|| {
            let mut step = self.0.lock();
            *step = match std::mem::replace(&mut *step, Step::Idle) {
                Step::Working => Step::Answered(answer),
                Step::Abandoned => Step::Idle,
                other => other,
            };
            self.0.changed.notify_all();
        });
    }
}
