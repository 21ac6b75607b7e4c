import { SortieError } from "../errors.ts";
import type { Connection } from "./connection.ts";
import { consumerInfo } from "./consumer-info.ts";
import { serverIsAtLeast } from "./jetstream.ts";
import { within } from "./within.ts";

interface Named {
  readonly stream: { readonly name: string };
  readonly name: string;
}

/**
 * Lets the server hand out nothing of a consumer until then (epoch milliseconds). One that someone has paused for longer is
 * left so. A server before 2.11 cannot, and is not asked.
 * @throws SortieError `timed-out` or `stream-refused`, or what the client throws.
 */
export async function pauseConsumer(connection: Connection, consumer: Named, until: number, ms: number): Promise<void> {
  if (!canPause(connection)) return;
  const paused = await pausedUntil(connection, consumer, ms);
  if (paused < until) await setPause(connection, consumer, until, ms);
}

/** Lets the server hand out messages of a consumer again that we have paused until then (0: have not). By someone else, it stays so. */
export async function resumeConsumer(
  connection: Connection,
  consumer: Named,
  until: number,
  ms: number,
): Promise<void> {
  if (until === 0) return;
  const paused = await pausedUntil(connection, consumer, ms);
  if (paused === Math.trunc(until)) await setPause(connection, consumer, 0, ms); // whatever the host's clock says
}

/** Until when a consumer is paused, by whomever, in epoch milliseconds; 0 where it is not. */
export async function pausedUntil(connection: Connection, { stream, name }: Named, ms: number): Promise<number> {
  if (!canPause(connection)) return 0;
  const { paused, config } = await consumerInfo(connection, { stream: stream.name, consumer: name }, ms);
  return paused ? Date.parse(config?.pause_until ?? "") : 0;
}

function canPause(connection: Connection): boolean {
  return serverIsAtLeast(connection, "2.11");
}

async function setPause(connection: Connection, { stream, name }: Named, until: number, ms: number): Promise<void> {
  const subject = `$JS.API.CONSUMER.PAUSE.${stream.name}.${name}`;
  const payload = JSON.stringify({ pause_until: new Date(until).toISOString() });
  const asked = connection.request(subject, payload, { timeout: Math.max(1, ms) });
  const { error } = (await within(ms, "pausing a consumer", asked)).json<{ error?: { description?: string } }>();
  if (error)
    throw new SortieError(
      "stream-refused",
      `The server refused to pause consumer "${name}" of stream "${stream.name}": ${error.description}`,
    );
}
