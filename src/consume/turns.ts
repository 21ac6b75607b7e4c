import { textOf } from "../errors.ts";
import { point } from "../nats/within.ts";
import { attempt, type Outcome } from "./attempt.ts";
import { startTogether } from "./batch-attempt.ts";
import type { Circumstances } from "./circumstances.ts";
import type { Binding } from "./handler.ts";
import type { Held } from "./held.ts";
import { type Attempts, noAttempts } from "./ledger.ts";

/** How long what could not be started comes not again, for trouble that is not the message's. */
export const troubleMs = 1_000;

/** Gives each message in hand its turn: as many handlers side by side as the consumer's concurrency, a suspect alone. */
export interface Turns {
  /** Handlers that run. */
  readonly running: number;
  /** What a handler takes, in milliseconds, for as many messages as it takes; undefined as long as none has ended. */
  readonly handlerMs: number | undefined;
  /** Waits for a turn beside others. */
  beside(one: Held): void;
  /** Waits for a turn with nothing beside it. */
  alone(one: Held, attempts: Attempts): Promise<void>;
  /** Starts what can be started. */
  startNext(): void;
  /** Starts nothing any more, and hands back what was not started. */
  stop(): void;
}

/** `leave` is told how each one is to leave the hand, `check` notices where another invocation may have it by now. */
export function openTurns(
  binding: Binding,
  {
    check,
    leave,
    trouble,
  }: {
    check(one: Held): void;
    leave(one: Held, outcome: Outcome): void;
    trouble(error: string): void;
  },
  shared: Circumstances,
): Turns {
  const { consumer } = binding;
  const { clock, gate, ledger } = shared;
  const { now } = clock;
  const queue: Held[] = [];
  const suspects = new Map<Held, Attempts>();
  const { size } = binding.batch ?? { size: 1 };
  let running = 0;
  let tookMs: number | undefined; // averages that follow the latest: how long a handler took,
  let tookMessages = 1; // and for how many messages
  let stopped = false;
  let starting = false;
  let gathering = false;
  gate.onOpen(startNext);

  return {
    get running() {
      return running;
    },
    get handlerMs() {
      return tookMs === undefined ? undefined : (tookMs * size) / tookMessages;
    },
    beside(one) {
      queue.push(one);
      if (size === 1) startNext();
      else gather();
    },
    async alone(one, attempts) {
      suspects.set(one, attempts);
      await point("waiting for a turn to run alone", gate.enterAlone());
      if (!suspects.delete(one)) return gate.leave(); // it was handed back meanwhile
      one.inside = true;
      await startAgain(one, attempts, true);
    },
    startNext,
    stop() {
      stopped = true;
      for (const one of queue.splice(0)) leave(one, returned(one.entry?.attempts ?? noAttempts.attempts));
      for (const [one, attempts] of suspects) leave(one, returned(attempts));
      suspects.clear();
    },
  };

  function startNext(): void {
    if (starting || stopped) return; // a handler that ends at once comes back here
    starting = true;
    while (queue.length > 0 && running < consumer.concurrency && gate.open) {
      const one = enter(queue.shift() as Held);
      const batch = size > 1 && !isApart(one) && withCompany(one);
      if (batch && batch.length > 1) startBatch(batch);
      else if (one.entry) void startAgain(one, one.entry.attempts, false);
      else start(one, noAttempts.attempts);
    }
    starting = false;
  }

  function enter(one: Held): Held {
    gate.enter();
    one.inside = true;
    return one;
  }

  /** A start that is not known to be the first is written down before, so that it is known whatever happens. */
  async function startAgain(one: Held, before: Attempts, alone: boolean): Promise<void> {
    running += 1; // it has its place from now on
    try {
      await writeDown(one, before, alone);
    } catch (error) {
      running -= 1;
      return refused(one, before, error);
    }
    running -= 1;
    start(one, before);
  }

  async function writeDown(one: Held, before: Attempts, alone: boolean): Promise<void> {
    const opened = { ...before, open: { at: now(), host: shared.host, alone } };
    const ms = clock.budget.abandonAt - now();
    one.entry = await ledger.write(one.delivery, one.entry ?? noAttempts, opened, ms);
  }

  function refused(one: Held, before: Attempts, error: unknown): void {
    trouble(textOf(error));
    leave(one, returned(before, troubleMs));
  }

  /** Whether it is still ours to start; else it leaves. */
  function isOurs(one: Held, before: Attempts): boolean {
    check(one);
    if (one.lost) leave(one, returned(before));
    return !one.lost;
  }

  function start(one: Held, before: Attempts): void {
    if (!isOurs(one, before)) return;
    running += 1;
    const started = now();
    const outcome = attempt(binding, one.delivery, before, shared);
    if (outcome instanceof Promise) void outcome.then(ended);
    else ended(outcome);

    function ended(outcome: Outcome): void {
      running -= 1;
      took(now() - started, 1);
      leave(one, outcome);
    }
  }

  function took(ms: number, messages: number): void {
    tookMessages = tookMs === undefined ? messages : tookMessages * 0.9 + messages * 0.1;
    tookMs = tookMs === undefined ? ms : tookMs * 0.9 + ms * 0.1;
  }

  /** Has what came in one piece start together. */
  function gather(): void {
    if (gathering) return;
    gathering = true;
    queueMicrotask(() => {
      gathering = false;
      startNext();
    });
  }

  /** Takes from the queue whom a message is started together with: those who wait, as many as fit. */
  function withCompany(one: Held): Held[] {
    const batch = [one];
    for (let at = 0; at < queue.length && batch.length < size; ) {
      if (isApart(queue[at] as Held)) at += 1;
      else batch.push(...queue.splice(at, 1).map(enter));
    }
    return batch;
  }

  /** A batch has one place, from before its starts are written down until the last of its messages leaves. */
  function startBatch(batch: readonly Held[]): void {
    running += 1;
    let since = now();
    void startTogether(batch, {
      binding,
      shared,
      mayStart: () => !stopped,
      isOurs,
      writeDown: (one, before) => writeDown(one, before, false),
      refused,
      leave(decided) {
        took(now() - since, decided.length);
        since = now();
        for (const [one, outcome] of decided) leave(one, outcome);
      },
    }).then(() => {
      running -= 1;
      startNext();
    });
  }
}

/** Whether a message is started without company: it failed in a batch, of which nobody could say who broke it. */
function isApart({ entry }: Held): boolean {
  return entry?.attempts.apart === true;
}

/** Handed back, which is no attempt. */
export function returned(attempts: Attempts, delayMs = 0): Outcome {
  return { settlement: { kind: "return", delayMs }, attempts };
}
