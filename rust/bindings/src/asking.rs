//! Asking the user's policy from the packet loop without waiting for it: the other half of `python/lb/backends/asking.py`, which says why.
//!
//! The loop's thread takes neither the GIL nor a lock here: it leaves its question in a channel and goes on, and the answer comes as a command of the loop.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use flowlb_core::io::Worker;
use flowlb_core::snapshot::{Answer, Question};
use pyo3::prelude::*;

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
    candidates: Vec<String>,
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

/// The questions, for the thread that answers them one after the other.
#[pyclass(module = "lb._core", frozen)]
pub struct Questions {
    shared: Arc<Shared>,
    asked: Mutex<Receiver<Message>>,
    /// Of the question that `wait` returned last.
    ticket: AtomicU64,
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
    /// Let the thread that answers end. Not while the interpreter does: the thread would want the GIL, and waits as well as it ends.
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
                let questions = Questions {
                    shared: Arc::clone(&self.shared),
                    asked: Mutex::new(asked),
                    ticket: AtomicU64::new(0),
                };
                py.import("lb.backends.asking")?
                    .call_method1("start_answering", (Bound::new(py, questions)?,))?;
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
        let candidates = question.candidates.iter();
        let asked = Asked {
            ticket,
            deadline: now + Duration::from_nanos(question.deadline_ns),
            function: Arc::clone(function),
            service: question.service.to_owned(),
            client: question.client,
            client_port: question.client_port,
            candidates: candidates.map(|&name| name.to_owned()).collect(),
        };
        match self.questions.send(Message::Ask(asked)) {
            Ok(()) => Answer::Later,
            Err(_) => Answer::Given(None),
        }
    }
}

impl Questions {
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
}

#[pymethods]
impl Questions {
    /// Wait for a question, without the GIL: (function, service, client, client port, candidate names). None: there will be none any more.
    #[expect(
        clippy::type_complexity,
        reason = "it is the tuple that Python's half names Question"
    )]
    fn wait(&self, py: Python<'_>) -> Option<(Py<PyAny>, String, String, u16, Vec<String>)> {
        let asked = py.detach(|| self.next())?;
        self.ticket.store(asked.ticket, Ordering::Relaxed);
        let overdue_ns = self.shared.since_began_ns(asked.deadline);
        self.shared.overdue_ns.store(overdue_ns, Ordering::Release);
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
