import type { ConsumerDefinition } from "../define/consumer.ts";
import { type Connection, maxPayloadOf } from "../nats/connection.ts";
import { type Delivery, derivedId } from "../nats/delivery.ts";
import { headersSize } from "../publish/outgoing.ts";
import { publish } from "../publish/publish.ts";
import { deadLetterHeaders, deadLetterOf, type Story } from "./story.ts";

/**
 * Stores a delivery among the dead letters and waits for the server's word on it. A payload as large as the server's
 * max_payload leaves no room for a header beside it: it is stored as an entry without any, and the story as another that
 * names it.
 * @throws SortieError as `publish` does; nothing is lost then, for the delivery is still there.
 */
export async function storeDeadLetter(
  connection: Connection,
  delivery: Delivery,
  consumer: ConsumerDefinition,
  story: Story,
  ms: number,
): Promise<void> {
  const limit = maxPayloadOf(connection);
  const whole = deadLetterOf(delivery, consumer, story, limit);
  if (whole) {
    await publish(connection, whole, ms);
    return;
  }
  const bare = { subject: consumer.deadLetter, payload: delivery.data };
  const named = { ...bare, id: derivedId(delivery, "dead-letter") }; // or a second one may be stored after a crash
  const fits = named.payload.length + headersSize(named) <= limit;
  const payload = await publish(connection, fits ? named : bare, ms / 2);
  const told = deadLetterOf({ ...delivery, data: new Uint8Array() }, consumer, story, limit - 64);
  if (!told) return; // a max_payload of a few hundred bytes: the payload is what matters
  const reference = [deadLetterHeaders.payloadSequence, `${payload.sequence}`] as const;
  const id = derivedId(delivery, "dead-letter.story");
  await publish(connection, { ...told, id, headers: [...(told.headers ?? []), reference] }, ms / 2);
}
