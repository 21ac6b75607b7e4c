import type { StreamDefinition } from "../define/stream.ts";
import type { Connection } from "../nats/connection.ts";
import type { Delivery } from "../nats/delivery.ts";
import { within } from "../nats/within.ts";
import type { Budget } from "./budget.ts";
import type { Binding } from "./handler.ts";
import { type Message, read, unreadable } from "./message.ts";
import { createOutbox } from "./outbox.ts";
import type { Outcome } from "./settle.ts";
import { decideFailure } from "./settlement.ts";

/** What every attempt of an invocation shares. */
export interface Circumstances {
  readonly connection: Connection;
  readonly streams: readonly StreamDefinition[];
  readonly budget: Budget;
  readonly signal: AbortSignal;
  readonly now: () => number;
}

/** Runs the handler for one delivery and decides how the delivery leaves. Never throws. */
export async function attempt(
  { consumer, handler }: Binding,
  delivery: Delivery,
  shared: Circumstances,
): Promise<Outcome> {
  const { budget, connection, signal, now } = shared;
  const { deliveryCount } = delivery;
  let message: Message;
  try {
    message = await within(budget.abandonAt - now(), "the schema", read(delivery, consumer));
  } catch (error) {
    const reason = unreadable(error);
    return reason ? { settlement: { kind: "dead-letter", reason }, error, attempts: 0 } : failed(error);
  }
  if (deliveryCount > consumer.retry.attempts) {
    const error = new Error(
      `${deliveryCount - 1} deliveries were never settled: each time its function ended before, or its dead letter was refused`,
    );
    return { settlement: { kind: "dead-letter", reason: "never-settled" }, error, attempts: deliveryCount - 1 };
  }
  const outbox = createOutbox(connection, shared.streams, delivery, now);
  const { publish, schedule } = outbox;
  try {
    const context = { publish, schedule, signal, remaining: () => Math.max(0, budget.stopAt - now()) };
    const handled = (async () => handler(message, context))();
    await within(budget.abandonAt - now(), `the handler of consumer "${consumer.name}"`, handled);
    outbox.close();
    const ms = budget.publishBy - now();
    await within(ms, "publishing what the handler wants published", outbox.flush(ms));
    return { settlement: { kind: "ack" }, attempts: deliveryCount };
  } catch (error) {
    return failed(error);
  } finally {
    outbox.close();
  }

  function failed(error: unknown): Outcome {
    return { settlement: decideFailure(error, deliveryCount, consumer.retry), error, attempts: deliveryCount };
  }
}
