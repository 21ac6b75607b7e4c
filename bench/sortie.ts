import { type InvocationOptions, invoke } from "../src/consume/invocation.ts";
import type { ConsumerReport, InvocationEvent } from "../src/consume/report.ts";
import { type Connection, connect } from "../src/nats/connection.ts";
import type { Backlog } from "./backlog.ts";

/**
 * One invocation over a backlog; it throws where not everything that it pulled was acknowledged, or handed back when its time
 * was over, and confirmed.
 */
export async function invokeOn(
  { app: { streams, bindings } }: Pick<Backlog, "app">,
  options: Pick<InvocationOptions, "connect"> & Partial<InvocationOptions>,
): Promise<ConsumerReport> {
  const events: InvocationEvent[] = [];
  const log = (event: InvocationEvent) => void events.push(event);
  const invocation = { deadline: Date.now() + 60_000, log, ...options };
  const { consumers } = await invoke({ streams, bindings, ...invocation });
  const [report] = consumers;
  if (!report || report.ended === "failed" || report.acked + report.returned !== report.pulled)
    throw new Error(`An invocation did not do what it was to: ${JSON.stringify([...consumers, events[0]])}`);
  return report;
}

/** An invocation that uses a connection which is open already, as a warm Lambda would. */
export function keeping(connection: Connection): Pick<InvocationOptions, "connect" | "disconnect"> {
  return { connect: async () => connection, disconnect() {} };
}

/** An invocation that opens its own, as in a Worker. */
export function dialling(url: string): Pick<InvocationOptions, "connect"> {
  return { connect: (ms) => connect({ url }, ms) };
}
