import type { Start } from "../dead-letter/story.ts";
import type { Message } from "../define/message.ts";
import { textOf } from "../errors.ts";
import type { Delivery } from "../nats/delivery.ts";
import { pause, within } from "../nats/within.ts";
import type { Circumstances } from "./circumstances.ts";
import type { Clock } from "./clock.ts";
import type { Binding } from "./handler.ts";
import { type Attempts, noAttempts } from "./ledger.ts";
import { read, unreadable } from "./message.ts";
import { Outbox } from "./outbox.ts";
import { decideFailure, type InPlace, type Settlement } from "./settlement.ts";

/** How a delivery is to leave, and why. */
export interface Outcome {
  readonly settlement: Settlement;
  readonly error?: unknown;
  /** All that is known of the message's attempts now. */
  readonly attempts: Attempts;
}

/** A message is to be started once more in place. */
export interface Again {
  readonly again: InPlace;
  readonly attempts: Attempts;
}

/** One start of a handler. */
export interface Try {
  readonly binding: Binding;
  readonly delivery: Delivery;
  readonly shared: Circumstances;
  /** What is known of the starts before. */
  readonly before: Attempts;
  /** How many of them were just before, in place. */
  readonly inPlace: number;
  readonly at: number;
  /** What was read, once it could be. */
  message?: Message;
}

/**
 * Reads a delivery, runs its handler, more than once where the policy says so, and decides how the delivery leaves.
 * `before` is what is known of earlier attempts. Never throws; answers at once where schema and handler do.
 */
export function attempt(
  binding: Binding,
  delivery: Delivery,
  before: Attempts,
  shared: Circumstances,
  inPlace = 0,
): Outcome | Promise<Outcome> {
  const { clock } = shared;
  const { consumer } = binding;
  const one: Try = { binding, delivery, shared, before, inPlace, at: clock.now() };
  try {
    const reading = read(delivery, consumer, before.started + 1);
    const handling = isPromise(reading)
      ? clock.handling(`the schema of consumer "${consumer.name}"`, reading).then((message) => handle(one, message))
      : handle(one, reading);
    if (handling === undefined) return succeeded(one);
    return handling.then(
      () => succeeded(one),
      (error: unknown) => failed(one, error),
    );
  } catch (error) {
    return failed(one, error);
  }
}

/** What comes of a message for which `error` was thrown by what belongs to its handler, before that was started. */
export async function failedBefore(
  binding: Binding,
  delivery: Delivery,
  before: Attempts,
  shared: Circumstances,
  error: unknown,
): Promise<Outcome> {
  return failed({ binding, delivery, shared, before, inPlace: Infinity, at: shared.clock.now() }, error);
}

function handle(one: Try, message: Message): Promise<void> | undefined {
  one.message = message;
  const { binding, delivery, shared } = one;
  const { signal, remaining } = shared.clock;
  const outbox = new Outbox(shared, delivery, message);
  const { publish, schedule } = outbox;
  try {
    const handled = binding.handler(message, { publish, schedule, signal, remaining });
    if (isPromise(handled) || outbox.size > 0) return finish(one, handled, outbox);
  } catch (error) {
    outbox.close();
    throw error;
  }
  outbox.close();
  return undefined;
}

async function finish({ binding, shared: { clock } }: Try, handled: unknown, outbox: Outbox): Promise<void> {
  try {
    if (isPromise(handled)) await clock.handling(`the handler of consumer "${binding.consumer.name}"`, handled);
  } finally {
    outbox.close();
  }
  if (outbox.size > 0) await sendAll(outbox, clock);
}

/** Publishes what a handler that has succeeded wants published. Throws what was refused. */
export async function sendAll(outbox: Outbox, clock: Clock): Promise<void> {
  const ms = clock.budget.publishBy - clock.now();
  await within(ms, "publishing what the handler wants published", outbox.flush(ms));
}

export function succeeded({ before }: Pick<Try, "before">): Outcome {
  return before === noAttempts.attempts ? firstSucceeded : { settlement: acknowledged, attempts: before };
}

function failed(one: Try, error: unknown): Outcome | Promise<Outcome> {
  const { binding, delivery, shared, inPlace } = one;
  const decided = decide(one, error);
  if (!("again" in decided)) return decided;
  const { again, attempts } = decided;
  return untilAgain(again.delayMs).then(() => attempt(binding, delivery, attempts, shared, inPlace + 1));
}

export function untilAgain(ms: number): Promise<void> {
  return pause(ms, "waiting to start a handler once more in place");
}

/** Decides what becomes of a start that failed. */
export function decide(one: Try, error: unknown): Outcome | Again {
  const { binding, before, inPlace, at, shared } = one;
  const { clock, host } = shared;
  const reason = one.message === undefined ? unreadable(error) : undefined;
  if (reason) return { settlement: { kind: "dead-letter", reason }, error, attempts: before };
  const now = clock.now();
  const attempts = withStart(before, { at, host, error: textOf(error) });
  const leftMs = clock.budget.stopAt - now;
  const failure = { error, attempt: attempts.started, inPlace, leftMs, now, chance: Math.random() };
  const decided = decideFailure(failure, binding.consumer.retry);
  return decided.kind === "in-place" ? { again: decided, attempts } : { settlement: decided, error, attempts };
}

const acknowledged: Settlement = { kind: "ack" };
const firstSucceeded: Outcome = { settlement: acknowledged, attempts: noAttempts.attempts };

/** Whether a message simply succeeded. */
export function isAcknowledged({ settlement }: Outcome): boolean {
  return settlement === acknowledged;
}

/** The attempts with one more start, which has ended. */
export function withStart({ started, starts }: Attempts, start: Start): Attempts {
  return { started: started + 1, starts: [...starts, start] };
}

export function isPromise<T>(value: T): value is Extract<T, PromiseLike<unknown>> {
  return typeof value === "object" && value !== null && "then" in value && typeof value.then === "function";
}
