import { SortieError } from "../errors.ts";
import type { Connection } from "./connection.ts";
import { serverIsAtLeast } from "./jetstream.ts";
import { within } from "./within.ts";

/**
 * Lets the server hand out nothing of a consumer until then (epoch milliseconds), or again where that is past. A server
 * before 2.11 cannot, and is not asked.
 * @throws SortieError `timed-out` or `stream-refused`, or what the client throws.
 */
export async function pauseConsumer(
  connection: Connection,
  { stream, name }: { readonly stream: { readonly name: string }; readonly name: string },
  until: number,
  ms: number,
): Promise<void> {
  if (!serverIsAtLeast(connection, "2.11")) return;
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
