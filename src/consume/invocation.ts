import type { StreamDefinition } from "../define/stream.ts";
import { type Connection, disconnect } from "../nats/connection.ts";
import { planBudget } from "./budget.ts";
import type { Binding } from "./handler.ts";
import type { InvocationEvent, InvocationReport } from "./report.ts";
import { runConsumer } from "./run.ts";

export interface InvocationOptions {
  readonly streams: readonly StreamDefinition[];
  readonly bindings: readonly Binding[];
  /** Opens the connection that this invocation alone uses, within `ms`. */
  connect(ms: number): Promise<Connection>;
  /** When the invocation must be over, in epoch milliseconds. */
  readonly deadline: number;
  /** Told of every message that did not simply succeed. */
  log(event: InvocationEvent): void;
  /** The clock. @default Date.now */
  now?: () => number;
}

/**
 * One sortie: connects, runs every consumer side by side, and is gone before its deadline.
 * @throws SortieError `connection-failed`. What goes wrong later is in the report.
 */
export async function invoke({
  streams,
  bindings,
  connect,
  deadline,
  log,
  now = Date.now,
}: InvocationOptions): Promise<InvocationReport> {
  const started = now();
  const budget = planBudget(started, deadline);
  const connection = await connect(budget.connectMs);
  const stop = new AbortController();
  const timer = setTimeout(
    () => stop.abort(new DOMException("The invocation's time is over", "TimeoutError")),
    budget.stopAt - now(),
  );
  try {
    const shared = { connection, streams, budget, signal: stop.signal, now };
    const consumers = await Promise.all(bindings.map((binding) => runConsumer(binding, shared, log)));
    return { ms: now() - started, consumers };
  } finally {
    clearTimeout(timer);
    await disconnect(connection, deadline - now());
  }
}
