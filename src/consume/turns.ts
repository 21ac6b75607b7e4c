import { textOf } from "../errors.ts";
import { isConflict } from "../nats/records.ts";
import { pause, point } from "../nats/within.ts";
import { type Again, attempt, type Outcome, returned } from "./attempt.ts";
import { startTogether } from "./batch-attempt.ts";
import type { Breaker } from "./breaker.ts";
import type { Circumstances } from "./circumstances.ts";
import type { Binding } from "./handler.ts";
import { attemptsOf, type Held, type Member, memberOf } from "./held.ts";
import { aloneWaitMs, openInTime } from "./in-time.ts";
import { type Attempts, noAttempts } from "./ledger.ts";
import { type Pace, slotWaitMs } from "./pace.ts";

/** How long what could not be started comes not again, for trouble that is not the message's. */
export const troubleMs = 1_000;

/** Gives each message in hand its turn: as many handlers side by side as the consumer's concurrency, a suspect alone. */
export interface Turns {
  /** Handlers that run. */
  readonly running: number;
  /** Messages that wait for their slot under a rate limit, and keep no place. */
  readonly aside: number;
  /** How many handlers may run, of what the consumer allows and others leave. */
  readonly places: number;
  /** What a handler takes, in milliseconds; undefined as long as none has ended. */
  readonly handlerMs: number | undefined;
  /** How many messages it has been taking at once. */
  readonly perHandler: number;
  /** Waits for a turn beside others. */
  beside(one: Held): void;
  /** Waits for a turn with nothing beside it. */
  alone(one: Held, attempts: Attempts): Promise<void>;
  /** Starts what can be started. */
  startNext(): void;
  /** A pull has been answered, or something has come of it. */
  heard(): void;
  /** Nothing more will come. */
  noMore(): void;
  /** Starts nothing any more, and hands back what was not started. */
  stop(): void;
}

/** What holds handlers back, where the consumer has it. */
export interface Limits {
  readonly pace: Pace | undefined;
  readonly breaker: Breaker | undefined;
}

/** `leave` is told how each one is to leave the hand, `check` notices where another invocation may have it by now. */
export function openTurns(
  binding: Binding,
  { pace, breaker }: Limits,
  {
    check,
    leave,
    trouble,
    hungry,
  }: {
    check(one: Held, at?: number): void;
    leave(one: Held, outcome: Outcome): void;
    trouble(error: string): void;
    /** There is room, and nothing that waits for it. */
    hungry(): void;
  },
  shared: Circumstances,
): Turns {
  const { consumer } = binding;
  const { clock, gate, ledger, rounds } = shared;
  const { now } = clock;
  const queue: Held[] = [];
  const suspects = new Map<Held, Attempts>();
  let running = 0;
  let waiting = 0; // of those, how many wait for the rate limit
  let aside = 0; // who waits for it without a place
  let near = 0; // who waits for it, or may have to
  const { batch, maxAckPending } = consumer;
  const mostAside = Math.floor(Math.min(batch, maxAckPending === -1 ? Infinity : maxAckPending) / 2); // the rest is for others
  const size = Math.min(binding.batch?.size ?? 1, pace?.together ?? Infinity);
  let handlerMs: number | undefined;
  let perHandler = 1;
  let gathering = false;
  let stopped = false;
  let starting = false;
  let [isKnown, isLast] = [false, false];
  const participant = {
    priority: consumer.priority,
    running: () => running,
    isKnown: () => isKnown,
    wants: () => !isLast || queue.length > 0 || suspects.size > 0,
    onOpen() {
      startNext();
      if (queue.length === 0 && !isLast) hungry();
    },
  };
  const inTime = openInTime(pace, { now, isOver, orReturned });
  gate.join(participant);
  breaker?.onRelease(startNext);

  return {
    get running() {
      return running - waiting;
    },
    get aside() {
      return aside;
    },
    get places() {
      return Math.min(consumer.concurrency, gate.placesFor(participant));
    },
    get handlerMs() {
      return handlerMs;
    },
    get perHandler() {
      return perHandler;
    },
    beside(one) {
      if (pace && !pace.knows(one)) void findLimit(one, pace);
      else enqueue(one);
    },
    async alone(one, attempts) {
      suspects.set(one, attempts);
      const suspect: Member = { one, before: attempts };
      const by = now() + Math.max(0, clock.budget.stopAt - now()) / 2;
      while (suspects.has(one)) {
        const before = await inTime.beforeAlone(suspect);
        if (before && suspects.delete(one)) leave(one, before);
        if (!suspects.has(one)) return;
        const asked = gate.enterAlone(participant, Math.max(0, by - now()));
        const entrance = await point("waiting for a turn to run alone", asked);
        if (!entrance) {
          if (!suspects.delete(one)) return;
          one.entry = { ...(one.entry ?? noAttempts), attempts }; // in company, of which nothing is concluded if they die
          enqueue(one);
          return;
        }
        const otherwise = suspects.has(one) ? await inTime.whileAlone(suspect) : undefined;
        if (otherwise && suspects.delete(one)) leave(one, otherwise);
        if (inTime.lets(one) && suspects.delete(one)) {
          one.inside = entrance;
          await startAgain(one, attempts, true);
          return;
        }
        gate.handled(); // it was handed back meanwhile, or others may go on while it waits
        gate.leave(entrance);
      }
    },
    startNext,
    heard() {
      if (isKnown) return;
      isKnown = true;
      gate.changed();
    },
    noMore() {
      isLast = true;
      gate.changed();
    },
    stop,
  };

  function stop(): void {
    stopped = true;
    pace?.stop();
    for (const one of queue.splice(0)) leave(one, returned(attemptsOf(one)));
    for (const [one, attempts] of suspects) leave(one, returned(attempts));
    suspects.clear();
  }

  function startNext(): void {
    if (starting || stopped) return; // a handler that ends at once comes back here
    starting = true;
    while (queue.length > 0 && mayStart() && !isBusy()) {
      const one = queue.shift() as Held;
      if (pace?.byKey && !pace.lets(one)) void startByKey(one, pace);
      else if (size > 1 || pace) startThese(withCompany(one));
      else startThis(one);
    }
    starting = false;
  }

  function mayStart(): boolean {
    return running < consumer.concurrency && gate.admits(participant, handlerMs) && !breaker?.holds;
  }

  function startThese(batch: readonly Held[]): void {
    const [one, another] = batch;
    if (!batch.every(inTime.lets)) void startInTime(batch);
    else if (another) void startBatch(batch);
    else if (one) startThis(one);
  }

  function startThis(one: Held): void {
    one.inside = gate.enter(handlerMs);
    if (one.entry) void startAgain(one, one.entry.attempts, false);
    else start(one, noAttempts.attempts);
  }

  function isBusy(): boolean {
    if (!isOver()) return rounds.isBusy();
    stop();
    return true;
  }

  /** They have a place of the consumer's while they wait, or several that have been let in would start one upon the other. */
  async function startInTime(batch: readonly Held[]): Promise<void> {
    running += 1;
    waiting += 1;
    const outcomes = await inTime.take(batch.map(memberOf));
    running -= 1;
    waiting -= 1;
    const over = isOver();
    const leaving = batch.map((one, n) => outcomes[n] ?? (over ? returned(attemptsOf(one)) : undefined));
    const staying = batch.filter((_, n) => !leaving[n]);
    const ready = mayStart() && !isBusy() ? staying.filter(inTime.lets) : [];
    queue.unshift(...staying.filter((one) => !ready.includes(one))); // it has missed its start, or others have the places
    if (ready.length > 0) startThese(ready);
    for (const [n, one] of batch.entries()) if (leaving[n]) leave(one, leaving[n]);
    startNext();
  }

  async function findLimit(one: Held, pace: Pace): Promise<void> {
    const before = attemptsOf(one);
    const otherwise = await orReturned(before, () => pace.find(one, before));
    if (otherwise || stopped) leave(one, otherwise ?? returned(before));
    else enqueue(one);
  }

  function enqueue(one: Held): void {
    if (pace?.byKey && one.entry)
      queue.unshift(one); // it has been in line already
    else queue.push(one);
    if (size === 1) startNext();
    else gather();
  }

  /**
   * One that may not be started yet asks without a place, and waits without one, where that is not for long: what it then
   * finds taken is no start that was lost.
   */
  async function startByKey(one: Held, pace: Pace): Promise<void> {
    const before = attemptsOf(one);
    const place = pace.nextFor(one) > now() ? 0 : 1;
    const waits = near < mostAside;
    let again = 0;
    near += waits ? 1 : 0;
    running += place;
    waiting += place;
    aside += 1 - place;
    const otherwise = await orReturned(before, async () => {
      const slot = await pace.ask(one, 0, waits);
      if ("at" in slot) {
        await pace.until(slot.at); // as soon as it is agreed on
        return undefined;
      }
      again = slot.again;
      return waits && again <= now() + slotWaitMs ? undefined : pace.putOff(again, before);
    });
    running -= place;
    waiting -= place;
    if (!otherwise && !isOver() && mayStart() && pace.lets(one) && !isBusy()) {
      aside -= 1 - place;
      near -= waits ? 1 : 0;
      startThis(one);
      startNext();
      return;
    }
    aside += place;
    startNext();
    if (!otherwise) await pace.until(again, one);
    aside -= 1;
    near -= waits ? 1 : 0;
    if (otherwise || isOver()) leave(one, otherwise ?? returned(before));
    else {
      queue.unshift(one);
      startNext();
    }
  }

  /** A start that is not known to be the first is written down before, so that it is known whatever happens. */
  async function startAgain(one: Held, before: Attempts, alone: boolean, inPlace = 0): Promise<void> {
    running += 1; // it has its place from now on
    const ms = alone ? aloneWaitMs : undefined;
    const inItsTime = async () => (inPlace > 0 ? undefined : (await inTime.together([{ one, before }], ms))[0]);
    const otherwise =
      (await inItsTime()) ?? (await orReturned(before, () => announce(one, before, alone))) ?? (await inItsTime()); // writing takes its time
    if (!otherwise) {
      await rounds.inTurn(() => {
        running -= 1;
        start(one, before, inPlace);
      });
      return;
    }
    running -= 1;
    leave(one, otherwise);
  }

  async function announce(one: Held, before: Attempts, alone: boolean): Promise<undefined> {
    const open = { at: now(), host: shared.host, alone };
    one.announced = open;
    one.opened = [...(one.opened ?? []), open];
    const ms = clock.budget.abandonAt - now();
    one.entry = await ledger.write(one.delivery, one.entry ?? noAttempts, { ...before, open }, ms);
    one.opened = [open];
  }

  /** What has to be done ahead of a start answers how the message leaves where it is not started, as where that fails. */
  async function orReturned(
    before: Attempts,
    ahead: () => Promise<Outcome | undefined> | undefined,
  ): Promise<Outcome | undefined> {
    try {
      return await ahead();
    } catch (error) {
      if (!isConflict(error)) trouble(textOf(error)); // else another invocation has it
      return returned(before, troubleMs);
    }
  }

  function start(one: Held, before: Attempts, inPlace = 0): void {
    const started = now();
    if (!isToStart(one, inPlace > 0, started)) {
      leave(one, returned(before));
      return;
    }
    running += 1;
    const { message, announced } = one;
    delete one.message;
    const mayStart = () => isToStart(one, inPlace > 0);
    const options = { inPlace, at: announced?.at ?? started, message, mayStart, inTurn: rounds.inTurn };
    const outcome = attempt(binding, one.delivery, before, shared, options);
    if (outcome instanceof Promise) void outcome.then(ended);
    else ended(outcome);

    function ended(came: Outcome | Again): void {
      running -= 1;
      took(now() - started, 1);
      const outcome = "inPlaceMs" in came ? came.otherwise : came;
      breaker?.ended(outcome);
      const keepsOthers = one.announced?.alone && "inPlaceMs" in came && came.inPlaceMs > aloneWaitMs;
      if ("inPlaceMs" in came && !isOver() && !keepsOthers) void startInPlace(one, came, inPlace + 1);
      else leave(one, outcome);
    }
  }

  function isToStart(one: Held, again: boolean, at = now()): boolean {
    return !isOver(at) && !breaker?.holds && isOurs(one, at) && (again || !isLate(at));
  }

  async function startInPlace(one: Held, { inPlaceMs, otherwise }: Again, inPlace: number): Promise<void> {
    running += 1;
    await pause(inPlaceMs, "waiting to start a handler once more in place");
    running -= 1;
    if (isOver() || breaker?.holds) leave(one, otherwise);
    else await startAgain(one, otherwise.attempts, one.announced?.alone ?? false, inPlace);
  }

  /** Averages that follow the latest. */
  function took(ms: number, messages: number): void {
    perHandler = handlerMs === undefined ? messages : perHandler * 0.9 + messages * 0.1;
    handlerMs = handlerMs === undefined ? ms : handlerMs * 0.9 + ms * 0.1;
  }

  function isOurs(one: Held, at = now()): boolean {
    check(one, at);
    return !one.lost;
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
    if (size === 1 || isApart(one)) return batch;
    for (let at = 0; at < queue.length && batch.length < size; ) {
      const other = queue[at] as Held;
      if (isApart(other) || pace?.lets(other) !== pace?.lets(one)) at += 1;
      else batch.push(...queue.splice(at, 1));
    }
    return batch;
  }

  /** A batch has one place, from before its starts are written down until the last of its messages leaves. */
  async function startBatch(batch: readonly Held[]): Promise<void> {
    running += 1;
    for (const [n, one] of batch.entries()) {
      one.inside = n > 0 ? gate.accompany() : gate.enter(handlerMs);
      one.inCompany = true;
    }
    let since = now();
    await startTogether(batch, {
      binding,
      shared,
      mayStart: () => !isOver() && !isLate(),
      holds: () => breaker?.holds === true,
      isOurs: (one) => isOurs(one),
      announce: (members) =>
        Promise.all(members.map(({ one, before }) => orReturned(before, () => announce(one, before, false)))),
      inTime: inTime.together,
      ended(outcomes) {
        took(now() - since, outcomes.length);
        since = now();
        for (const outcome of outcomes) breaker?.ended(outcome);
      },
      leave,
    });
    running -= 1;
    gate.handled();
    startNext();
  }

  /** It would be cut off, as far as is known, as where it had to wait for its turn: an attempt for nothing. */
  function isLate(at = now()): boolean {
    return at + (handlerMs ?? 0) > clock.budget.abandonAt;
  }

  /** A timer says so as well, but not while handlers keep the function busy. */
  function isOver(at = now()): boolean {
    return stopped || at >= clock.budget.stopAt;
  }
}

/** Whether a message is started without company: it failed in a batch, of which nobody could say who broke it. */
function isApart({ entry }: Held): boolean {
  return entry?.attempts.apart === true;
}
