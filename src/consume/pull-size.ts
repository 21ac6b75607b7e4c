/** What there is to know when an invocation is about to pull. */
export interface InHand {
  /** How many handlers run at the same time. */
  readonly concurrency: number;
  /** The most messages, and bytes, to have in hand. */
  readonly most: number;
  readonly mostBytes: number;
  /** What is in hand or on its way: messages that are handled or will be, */
  readonly messages: number;
  /** all that is not settled, */
  readonly unsettled: number;
  /** and the bytes of that. */
  readonly bytes: number;
  /** How long a handler takes, in milliseconds; undefined as long as none has ended. */
  readonly handlerMs: number | undefined;
  /** How many messages a handler takes at once, at most, @default 1 */
  readonly size?: number;
  /** and how many it has been taking. @default 1 */
  readonly perHandler?: number;
  /** How long a pull takes, in milliseconds. */
  readonly flightMs: number;
  /** How long handlers may still run, in milliseconds. */
  readonly leftMs: number;
}

/**
 * How much to pull, so that handlers are kept busy while the next pull is under way and what is pulled is almost always
 * finished: 0 for nothing now. As long as no handler has ended, only what can be started at once.
 */
export function planPull(hand: InHand): { messages: number; bytes: number } {
  const { concurrency, handlerMs, size = 1, perHandler = 1, flightMs, leftMs, most } = hand;
  let wanted = Math.min(concurrency * size, most);
  let perFlight = 1;
  if (handlerMs !== undefined) {
    const perMs = (concurrency * perHandler) / Math.max(handlerMs, 0.001);
    const rounds = Math.max(0, leftMs) / (1.5 * Math.max(handlerMs, 0.001)); // some take longer than the others
    const finishable = Math.floor(concurrency * perHandler * (rounds < 1 ? 0 : rounds));
    perFlight = Math.ceil(perMs * Math.max(2 * flightMs, 5));
    wanted = Math.min(most, finishable, concurrency * size + perFlight);
  }
  // several at once: asking for each place as it becomes free would be a round trip for each
  const againAt = wanted - Math.ceil(Math.min(wanted, perFlight) / 2);
  // the server may settle more slowly than handlers handle; and two pulls are to be under way at the same time
  const room = Math.min(wanted - hand.messages, 2 * most - hand.unsettled);
  const bytes = Math.min(Math.ceil(hand.mostBytes / 2), hand.mostBytes - hand.bytes);
  // what two pulls under way leave over is a remnant, for which the server would find the next message too large
  return { messages: bytes >= hand.mostBytes / 8 && hand.messages <= againAt ? Math.max(0, room) : 0, bytes };
}
