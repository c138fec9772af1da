/* Parting: where a wall's processes are to be saved, nothing inside may hold a socket of the host's. The agent lets go of
 * its own, and a program that the host starts inside later, `runra-agent --join NAME`, brings it another. */
#ifndef RUNRA_JOIN_H
#define RUNRA_JOIN_H

/* The socket such a program finds us by, for root inside only; -1 when it cannot be had. */
int join_open(void);
/* Who comes there, if it is root; else -1. */
int join_accept(int from);
/* The socket it brought; -1 when that is none. */
int join_receive(int from);
/* The program: the sandbox is called `name` from now on, and the agent gets our standard input. An exit status. */
int join_main(const char *name);

#endif
