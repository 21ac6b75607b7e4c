/** What workerd has built in, for modules that are only looked at: nothing of it works here. */
export class DurableObject {}
export class RpcTarget {}
