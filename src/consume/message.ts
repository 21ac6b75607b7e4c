import { type DeadLetterReason, deadLetterHeaders } from "../dead-letter/story.ts";
import type { ConsumerDefinition } from "../define/consumer.ts";
import type { Message } from "../define/message.ts";
import { schemaOf } from "../define/stream.ts";
import { InvalidPayloadError, SortieError } from "../errors.ts";
import { type Delivery, storedAt } from "../nats/delivery.ts";
import { idHeader, releasedHeaders } from "../schedule/when.ts";
import { decode, validate } from "../schema.ts";

/** Decodes and validates; `attempt` is the number of the start that it is read for. Throws what `unreadable` understands. */
export function read(delivery: Delivery, consumer: ConsumerDefinition, attempt: number): Message | Promise<Message> {
  const { subject, data, stream, sequence } = delivery;
  const schema = schemaOf(consumer.stream, subject);
  if (!schema)
    throw new SortieError(
      "unknown-subject",
      `Stream "${consumer.stream.name}" is defined without a schema for "${subject}"`,
    );
  const headers = new Map(delivery.headers().toReversed()); // of a name that comes twice, the first
  const valid = validate(subject, schema, decode(subject, data));
  return valid instanceof Promise ? valid.then(messageWith) : messageWith(valid);

  function messageWith(value: unknown): Message {
    const id = headers.get(idHeader) ?? headers.get("Nats-Msg-Id") ?? `${stream}.${sequence}`;
    const publishedAt = storedAt(delivery);
    const [planned, due = planned] = headers.get(releasedHeaders.scheduledFor)?.split(" ").map(Number) ?? [];
    return {
      subject,
      data: value,
      id,
      attempt,
      stream,
      sequence,
      publishedAt,
      headers,
      ...(Number.isFinite(planned) &&
        !headers.has(deadLetterHeaders.reason) && {
          schedule: {
            id: headers.get(releasedHeaders.schedule) ?? id,
            plannedAt: new Date(planned as number),
            lateMs: Math.max(0, publishedAt.getTime() - (due as number)),
          },
        }),
    };
  }
}

/** Why a message can never be read, or undefined where the error may pass (a schema that asks elsewhere). */
export function unreadable(error: unknown): DeadLetterReason | undefined {
  if (error instanceof InvalidPayloadError) return "invalid";
  if (!(error instanceof SortieError)) return undefined;
  if (error.code === "invalid-payload") return "undecodable";
  return error.code === "unknown-subject" ? "unknown-subject" : undefined;
}

/** Whether that is why: no handler was started. */
export function isUnreadable(reason: DeadLetterReason): boolean {
  return reason === "invalid" || reason === "undecodable" || reason === "unknown-subject";
}
