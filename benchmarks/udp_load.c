/* A client that keeps a window of datagrams on their way to an echo server.

       udp_load HOST PORT WINDOW SIZE [SOCKETS]

   It reads a number of datagrams from each line of its standard input, sends and receives so many,
   and answers with a line: how many came back, and how many had to be sent again.  With more than
   one socket the window is shared out among them, so that the server sees as many peers. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define MOST 256

int main(int argc, char **argv)
{
    if (argc != 5 && argc != 6)
        return 2;
    int window = atoi(argv[3]), size = atoi(argv[4]), sockets = argc == 6 ? atoi(argv[5]) : 1;
    if (window < 1 || window > MOST || size < 1 || size > 1400)
        return 2;
    if (sockets < 1 || sockets > window || window % sockets)
        return 2;
    int each = window / sockets;
    struct sockaddr_in server = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[2]))};
    if (inet_pton(AF_INET, argv[1], &server.sin_addr) != 1)
        return 2;
    static struct pollfd ready[MOST];
    for (int s = 0; s < sockets; s++) {
        int fd = socket(AF_INET, SOCK_DGRAM, 0), room = 1 << 22;
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &room, sizeof room);
        if (connect(fd, (struct sockaddr *)&server, sizeof server))
            return 1;
        ready[s] = (struct pollfd){.fd = fd, .events = POLLIN};
    }
    static char out[1400], in[MOST][1500];
    memset(out, 'x', sizeof out);
    static struct mmsghdr sending[MOST], receiving[MOST];
    static struct iovec sent[MOST], received[MOST];
    for (int i = 0; i < MOST; i++) {
        sent[i] = (struct iovec){out, size};
        received[i] = (struct iovec){in[i], sizeof in[i]};
        sending[i].msg_hdr = (struct msghdr){.msg_iov = &sent[i], .msg_iovlen = 1};
        receiving[i].msg_hdr = (struct msghdr){.msg_iov = &received[i], .msg_iovlen = 1};
    }
    long wanted;
    while (scanf("%ld", &wanted) == 1) {
        long done = 0, begun = 0, again = 0;
        static int due[MOST];
        for (int s = 0; s < sockets; s++)
            due[s] = each;
        while (done < wanted) {
            for (int s = 0; s < sockets; s++)
                while (due[s] > 0 && begun < wanted + again) {
                    long left = wanted + again - begun;
                    int count = sendmmsg(ready[s].fd, sending, due[s] < left ? due[s] : left, 0);
                    if (count < 0)
                        return 1;
                    due[s] -= count;
                    begun += count;
                }
            if (poll(ready, sockets, 200) == 0) { /* lost: the window is empty again */
                again += begun - done - again;
                for (int s = 0; s < sockets; s++)
                    due[s] = each;
                continue;
            }
            for (int s = 0; s < sockets; s++) {
                if (!ready[s].revents)
                    continue;
                int count = recvmmsg(ready[s].fd, receiving, MOST, MSG_DONTWAIT, NULL);
                if (count < 0)
                    return 1;
                for (int i = 0; i < count; i++)
                    if (receiving[i].msg_len != (unsigned)size || in[i][0] != 'x')
                        return 1;
                done += count;
                due[s] += count;
            }
        }
        printf("%ld %ld\n", done, again);
        fflush(stdout);
    }
    return 0;
}
