import type { Start } from "../dead-letter/story.ts";
import { textOf } from "../errors.ts";
import type { Delivery } from "../nats/delivery.ts";
import { within } from "../nats/within.ts";
import type { Circumstances } from "./circumstances.ts";
import type { Binding } from "./handler.ts";
import type { Attempts } from "./ledger.ts";
import { type Message, read, unreadable } from "./message.ts";
import { createOutbox } from "./outbox.ts";
import { decideFailure, type Settlement } from "./settlement.ts";

/** How a delivery is to leave, and why. */
export interface Outcome {
  readonly settlement: Settlement;
  readonly error?: unknown;
  /** All that is known of the message's attempts now. */
  readonly attempts: Attempts;
}

/**
 * Reads a delivery, runs its handler, more than once where the policy says so, and decides how the delivery leaves.
 * `before` is what is known of earlier attempts. Never throws.
 */
export async function attempt(
  { consumer, handler }: Binding,
  delivery: Delivery,
  before: Attempts,
  shared: Circumstances,
): Promise<Outcome> {
  const { clock, connection } = shared;
  let attempts = before;
  for (let inPlace = 0; ; inPlace += 1) {
    const at = clock.now();
    let message: Message | undefined;
    try {
      message = await bounded("the schema", read(delivery, consumer, attempts.started + 1));
      await handle(message);
      return { settlement: { kind: "ack" }, attempts };
    } catch (error) {
      const reason = message ? undefined : unreadable(error);
      if (reason) return { settlement: { kind: "dead-letter", reason }, error, attempts };
      const now = clock.now();
      attempts = withStart(attempts, { at, host: shared.host, error: textOf(error) });
      const leftMs = clock.budget.stopAt - now;
      const failure = { error, attempt: attempts.started, inPlace, leftMs, now, chance: Math.random() };
      const decided = decideFailure(failure, consumer.retry);
      if (decided.kind !== "in-place") return { settlement: decided, error, attempts };
      if (decided.delayMs > 0) await new Promise((resolve) => setTimeout(resolve, decided.delayMs));
    }
  }

  async function handle(message: Message): Promise<void> {
    const outbox = createOutbox(connection, shared.streams, delivery, message, clock.now);
    const { publish, schedule } = outbox;
    try {
      const remaining = () => Math.max(0, clock.budget.stopAt - clock.now());
      const handled = handler(message, { publish, schedule, signal: clock.signal, remaining });
      if (isPromise(handled)) await bounded("the handler", handled);
      outbox.close();
      if (outbox.size === 0) return;
      const ms = clock.budget.publishBy - clock.now();
      await within(ms, "publishing what the handler wants published", outbox.flush(ms));
    } finally {
      outbox.close();
    }
  }

  function bounded<T>(what: string, promise: Promise<T>): Promise<T> {
    return within(clock.budget.abandonAt - clock.now(), `${what} of consumer "${consumer.name}"`, promise);
  }
}

/** The attempts with one more start, which has ended. */
function withStart({ started, starts }: Attempts, start: Start): Attempts {
  return { started: started + 1, starts: [...starts, start] };
}

function isPromise(value: unknown): value is Promise<unknown> {
  return typeof value === "object" && value !== null && "then" in value && typeof value.then === "function";
}
