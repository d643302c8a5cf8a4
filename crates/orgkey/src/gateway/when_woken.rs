//! Skips polls of a future that was not woken.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

/// Polls a future only if it was woken since its last poll. The first poll, and the first by another task, always reach it.
///
/// For a future that a task polls together with a busier one: each poll of a timer or a channel registers its waker under a lock, and
/// a connection would pay for that with each of its requests.
pub(super) fn when_woken<F>(future: F) -> WhenWoken<F> {
    WhenWoken {
        future,
        woken: None,
    }
}

pin_project_lite::pin_project! {
    pub(super) struct WhenWoken<F> {
        #[pin]
        future: F,
        // `None` before the first poll.
        woken: Option<Arc<Woken>>,
    }
}

/// The waker that the future gets. It records the wake, and wakes the task.
struct Woken {
    is_woken: AtomicBool,
    task: Waker,
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.is_woken.store(true, Ordering::Release);
        self.task.wake_by_ref();
    }
}

impl<F: Future> Future for WhenWoken<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let woken = match this.woken {
            Some(woken) if woken.task.will_wake(context.waker()) => {
                // A wake that comes after this leads to another poll of the task.
                if !woken.is_woken.load(Ordering::Relaxed) {
                    return Poll::Pending;
                }
                // Before the poll, so that a wake during it is kept. Not a store: another wake may come between the load and this
                // line, and the poll must see what that waker wrote.
                woken.is_woken.swap(false, Ordering::AcqRel);
                woken
            }
            // The future must register the new waker.
            _ => this.woken.insert(Arc::new(Woken {
                is_woken: AtomicBool::new(false),
                task: context.waker().clone(),
            })),
        };
        let waker = Waker::from(Arc::clone(woken));
        this.future.poll(&mut Context::from_waker(&waker))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::pin::pin;
    use std::sync::Mutex;
    use std::sync::atomic::AtomicUsize;

    use super::*;

    /// Counts how often it is woken.
    #[derive(Default)]
    struct Task(AtomicUsize);

    impl Wake for Task {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    impl Task {
        fn wakes(&self) -> usize {
            self.0.load(Ordering::Relaxed)
        }
    }

    #[test]
    fn polls_only_when_woken_or_by_another_task() {
        let waker = Mutex::new(None::<Waker>);
        let polls = AtomicUsize::new(0);
        let mut future = pin!(when_woken(poll_fn(|context| {
            *waker.lock().unwrap() = Some(context.waker().clone());
            if polls.fetch_add(1, Ordering::Relaxed) == 3 {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })));
        let tasks = [Arc::new(Task::default()), Arc::new(Task::default())];
        let wakers = [&tasks[0], &tasks[1]].map(|task| Waker::from(Arc::clone(task)));
        let mut poll = |task: usize| {
            let polled = future
                .as_mut()
                .poll(&mut Context::from_waker(&wakers[task]));
            (polled.is_ready(), polls.load(Ordering::Relaxed))
        };
        let wake = || waker.lock().unwrap().as_ref().unwrap().wake_by_ref();

        assert_eq!([poll(0), poll(0)], [(false, 1), (false, 1)]);
        wake();
        assert_eq!(tasks[0].wakes(), 1);
        assert_eq!([poll(0), poll(0)], [(false, 2), (false, 2)]);
        // Another task polls: from now on, a wake reaches this one only.
        assert_eq!([poll(1), poll(1)], [(false, 3), (false, 3)]);
        wake();
        assert_eq!([tasks[0].wakes(), tasks[1].wakes()], [1, 1]);
        assert_eq!(poll(1), (true, 4));
    }

    #[test]
    fn polls_again_when_woken_during_a_poll() {
        let polls = AtomicUsize::new(0);
        let mut future = pin!(when_woken(poll_fn(|context| {
            context.waker().wake_by_ref();
            polls.fetch_add(1, Ordering::Relaxed);
            Poll::<()>::Pending
        })));
        let waker = Waker::from(Arc::<Task>::default());
        for expected in 1..4 {
            let polled = future.as_mut().poll(&mut Context::from_waker(&waker));
            assert!(polled.is_pending());
            assert_eq!(polls.load(Ordering::Relaxed), expected);
        }
    }
}
