export { crashPoints } from "../nats/within.ts";
export { type NatsServer, type NatsServerOptions, startNatsServer } from "./nats-server.ts";
