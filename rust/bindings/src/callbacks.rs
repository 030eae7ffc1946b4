//! Asking the user's policy from the packet loop without waiting for it: the other half of
//! `python/lb/backends/callbacks.py`, which says why.
//!
//! The loop's thread takes neither the GIL nor a lock here: it leaves its question in a channel and continues, and
//! the answer comes as a command of the loop.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use flowlb_core::io::Worker;
use flowlb_core::snapshot::{Answer, Names, Question};
use pyo3::prelude::*;
use pyo3::types::PyTuple;

/// The user's function. Shared, not cloned: that would take the GIL.
pub type Function = Arc<Py<PyAny>>;

/// A question that outlives its packet.
struct Asked {
    ticket: u64,
    /// Its packet has gone on by then.
    deadline: Instant,
    function: Function,
    service: String,
    client: IpAddr,
    client_port: u16,
    candidates: Names,
}

/// What the thread that answers is told.
enum Message {
    Ask(Asked),
    End,
}

struct Shared {
    live: AtomicBool,
    answering: AtomicBool,
    questions: Sender<Message>,
    /// Nanoseconds since `began` at which the question that is being answered is overdue; `IDLE`: none is.
    overdue_ns: AtomicU64,
    began: Instant,
    /// The loop that answers are for.
    worker: Mutex<Weak<Worker>>,
}

const IDLE: u64 = u64::MAX;

/// The answering thread's side of the channel: it answers the questions one after the other.
#[pyclass(module = "lb._core", frozen)]
pub struct CallbackChannel {
    shared: Arc<Shared>,
    asked: Mutex<Receiver<Message>>,
    /// Of the question that `wait` returned last.
    ticket: AtomicU64,
    /// Its candidates as Python has them: those of the next are mostly the same.
    candidates: Mutex<Option<(Names, Py<PyTuple>)>>,
}

/// The data path's end of it; ends the thread that answers when dropped.
pub struct Asker {
    shared: Arc<Shared>,
    asked: Mutex<Option<Receiver<Message>>>,
}

impl Default for Asker {
    fn default() -> Self {
        let (questions, asked) = mpsc::channel();
        let shared = Shared {
            live: AtomicBool::new(false),
            answering: AtomicBool::new(false),
            questions,
            overdue_ns: AtomicU64::new(IDLE),
            began: Instant::now(),
            worker: Mutex::default(),
        };
        Self {
            shared: Arc::new(shared),
            asked: Mutex::new(Some(asked)),
        }
    }
}

impl Drop for Asker {
    /// Let the thread that answers end. Not while the interpreter does: the thread would want the GIL, and waits as
    /// well as it ends.
    fn drop(&mut self) {
        if Python::try_attach(|_| ()).is_some() {
            // It fails when the thread has ended.
            let _ = self.shared.questions.send(Message::End);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Asker {
    /// Start a loop with questions that may be answered later; answers wait until it has started.
    pub fn go_live<E>(
        &self,
        start: impl FnOnce() -> Result<Arc<Worker>, E>,
    ) -> Result<Arc<Worker>, E> {
        let mut place = lock(&self.shared.worker);
        self.shared.live.store(true, Ordering::Relaxed);
        let started = start();
        match &started {
            Ok(worker) => *place = Arc::downgrade(worker),
            Err(_) => self.shared.live.store(false, Ordering::Relaxed),
        }
        started
    }

    /// Note that no loop runs any more: the function is called here and now from now on.
    pub fn end_live(&self) {
        self.shared.live.store(false, Ordering::Relaxed);
        *lock(&self.shared.worker) = Weak::new();
    }

    /// The function that the core calls for a user's function. Starts the thread that answers, once.
    pub fn function(
        &self,
        py: Python<'_>,
        function: Py<PyAny>,
    ) -> PyResult<flowlb_core::snapshot::AskFunction> {
        if !self.shared.answering.swap(true, Ordering::Relaxed) {
            if let Some(asked) = lock(&self.asked).take() {
                let channel = CallbackChannel {
                    shared: Arc::clone(&self.shared),
                    asked: Mutex::new(asked),
                    ticket: AtomicU64::new(0),
                    candidates: Mutex::default(),
                };
                py.import("lb.backends.callbacks")?
                    .call_method1("start_answering", (Bound::new(py, channel)?,))?;
            }
        }
        let (shared, function) = (Arc::clone(&self.shared), Arc::new(function));
        Ok(Arc::new(move |question: &Question<'_>| {
            if shared.live.load(Ordering::Relaxed) {
                shared.post(&function, question)
            } else {
                Answer::Given(call(&function, question))
            }
        }))
    }
}

/// Call the user's function here and now. Any failure of it is "no answer": the plan's fall-back decides, an event
/// counts it.
fn call(function: &Function, question: &Question<'_>) -> Option<String> {
    Python::attach(|py| {
        let client = question.client.to_string();
        let candidates = tuple(py, question.candidates).ok()?;
        let arguments = (question.service, client, question.client_port, candidates);
        function.call1(py, arguments).ok()?.extract(py).ok()
    })
}

/// Names as Python has them.
fn tuple<'py>(py: Python<'py>, names: &Names) -> PyResult<Bound<'py, PyTuple>> {
    PyTuple::new(py, names.iter().map(|name| &**name))
}

impl Shared {
    fn since_began_ns(&self, instant: Instant) -> u64 {
        let since = instant.saturating_duration_since(self.began);
        u64::try_from(since.as_nanos()).unwrap_or(IDLE - 1)
    }

    /// Leave a question, unless the one before it is overdue, or the packet cannot wait.
    fn post(&self, function: &Function, question: &Question<'_>) -> Answer {
        let now = Instant::now();
        let overdue_ns = self.overdue_ns.load(Ordering::Acquire);
        let Some(ticket) = question.ticket else {
            return Answer::Given(None);
        };
        if self.since_began_ns(now) >= overdue_ns {
            return Answer::Given(None);
        }
        let asked = Asked {
            ticket,
            deadline: now + Duration::from_nanos(question.deadline_ns),
            function: Arc::clone(function),
            service: question.service.to_owned(),
            client: question.client,
            client_port: question.client_port,
            candidates: Arc::clone(question.candidates),
        };
        match self.questions.send(Message::Ask(asked)) {
            Ok(()) => Answer::Later,
            Err(_) => Answer::Given(None),
        }
    }
}

impl CallbackChannel {
    /// The next question whose packet still waits.
    fn next(&self) -> Option<Asked> {
        let asked = lock(&self.asked);
        loop {
            let Ok(Message::Ask(question)) = asked.recv() else {
                return None;
            };
            if Instant::now() < question.deadline {
                return Some(question);
            }
        }
    }

    /// The candidates of a question for Python, made anew only where they are others than those of the one before.
    fn candidates(&self, py: Python<'_>, names: &Names) -> PyResult<Py<PyTuple>> {
        let mut kept = lock(&self.candidates);
        let same = kept.as_ref().filter(|(of, _)| Arc::ptr_eq(of, names));
        if let Some((_, made)) = same {
            return Ok(made.clone_ref(py));
        }
        let made = tuple(py, names)?.unbind();
        *kept = Some((Arc::clone(names), made.clone_ref(py)));
        Ok(made)
    }
}

#[pymethods]
impl CallbackChannel {
    /// Wait for a question, without the GIL: (function, service, client, client port, candidate names). None: there
    /// will be none any more.
    #[expect(
        clippy::type_complexity,
        reason = "it is the tuple that Python's half names Question"
    )]
    fn wait(
        &self,
        py: Python<'_>,
    ) -> PyResult<Option<(Py<PyAny>, String, String, u16, Py<PyTuple>)>> {
        let Some(asked) = py.detach(|| self.next()) else {
            return Ok(None);
        };
        self.ticket.store(asked.ticket, Ordering::Relaxed);
        let overdue_ns = self.shared.since_began_ns(asked.deadline);
        self.shared.overdue_ns.store(overdue_ns, Ordering::Release);
        let client = asked.client.to_string();
        Ok(Some((
            asked.function.clone_ref(py),
            asked.service,
            client,
            asked.client_port,
            self.candidates(py, &asked.candidates)?,
        )))
    }

    /// Answer the question that `wait` returned last. None: no usable answer.
    #[pyo3(signature = (answer))]
    fn answer(&self, py: Python<'_>, answer: Option<String>) {
        self.shared.overdue_ns.store(IDLE, Ordering::Release);
        let ticket = self.ticket.load(Ordering::Relaxed);
        py.detach(|| {
            let worker = lock(&self.shared.worker).upgrade();
            if let Some(worker) = worker {
                // It fails when the loop has ended: nothing waits then.
                let _ = worker.call(move |core| core.answer(ticket, answer.as_deref()));
            }
        });
    }
}
