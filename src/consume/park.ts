import type { ConsumerDefinition } from "../define/consumer.ts";
import { parkedStream, parkedSubject } from "../define/own.ts";
import type { Connection } from "../nats/connection.ts";
import type { Delivery } from "../nats/delivery.ts";
import { isOutrun, publish } from "../publish/publish.ts";
import { idHeader } from "../schedule/when.ts";

/** The headers that say what a parked copy stands for, beside those of the message itself. */
export const parkedHeaders = {
  subject: "Sortie-Subject",
  until: "Sortie-Parked-Until",
  ack: "Sortie-Parked-Ack",
} as const;

/**
 * Puts a copy of a message where its retry waits without a place in its consumer's `max_ack_pending`; one that is there
 * already is left as it is.
 * @throws SortieError as `publish` does.
 */
export async function park(
  connection: Connection,
  { name, stream }: ConsumerDefinition,
  delivery: Delivery,
  until: number,
  ms: number,
): Promise<void> {
  const own = delivery.headers();
  // one that was released has its id besides what the server knew it by
  const messageId = own.some(([header]) => header === idHeader)
    ? undefined
    : own.find(([header]) => header === "Nats-Msg-Id")?.[1];
  const headers: (readonly [string, string])[] = [
    ["Nats-Expected-Last-Subject-Sequence", "0"],
    [parkedHeaders.subject, delivery.subject],
    [parkedHeaders.until, `${until}`],
    [parkedHeaders.ack, delivery.ackSubject],
    ...(messageId ? [[idHeader, messageId] as const] : []),
    ...own.filter(([header]) => !/^Nats-/i.test(header)),
  ];
  const subject = parkedSubject(stream.name, name, delivery.sequence, delivery.storedNs);
  try {
    await publish(connection, { stream: parkedStream, subject, payload: delivery.data, headers }, ms);
  } catch (error) {
    if (!isOutrun(error)) throw error;
  }
}
