import type { Consumer } from "@nats-io/jetstream";
import type { NatsConnection } from "@nats-io/nats-core";

/** The bare client's ways of settling `count` messages that wait, as its documentation writes them. */
export type BareLoop = (nc: NatsConnection, consumer: Consumer, batch: number, count: number) => Promise<void>;

/** Nobody hears whether an acknowledgement arrived; the flush at the end at least lets them all leave. */
export const fetchAndAck: BareLoop = async (nc, consumer, batch, count) => {
  for (let done = 0; done < count; ) {
    const messages = await consumer.fetch({ max_messages: Math.min(batch, count - done), expires: 5_000 });
    for await (const message of messages) {
      message.ack();
      done += 1;
    }
  }
  await nc.flush();
};

/** As above, with the client asking for more by itself. */
export const consumeAndAck: BareLoop = async (nc, consumer, batch, count) => {
  let done = 0;
  const messages = await consumer.consume({ max_messages: batch });
  for await (const message of messages) {
    message.ack();
    done += 1;
    if (done === count) break;
  }
  await nc.flush();
};

/** The server answers each acknowledgement; those of a batch are awaited together. */
export const fetchAndAckAck: BareLoop = async (_nc, consumer, batch, count) => {
  for (let done = 0; done < count; ) {
    const acknowledged: Promise<boolean>[] = [];
    const messages = await consumer.fetch({ max_messages: Math.min(batch, count - done), expires: 5_000 });
    for await (const message of messages) acknowledged.push(message.ackAck());
    await Promise.all(acknowledged);
    done += acknowledged.length;
  }
};

/** The simple way: each one is awaited before the next message is taken. */
export const fetchAndAwaitAckAck: BareLoop = async (_nc, consumer, batch, count) => {
  for (let done = 0; done < count; ) {
    const messages = await consumer.fetch({ max_messages: Math.min(batch, count - done), expires: 5_000 });
    for await (const message of messages) {
      await message.ackAck();
      done += 1;
    }
  }
};
