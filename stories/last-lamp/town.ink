// The Market, the Stair and the chapel, in any order.

=== market
~ place = "The Market"
The stalls are shuttered and the fish have gone home in other people's baskets, but Calloway is on his step with a storm lamp, telling the fog what he thinks of it. Calloway sells the town its oil. He is a narrow man with a wide door.
"Where's himself?" he says, when he has made out that you are only you.
* [Say that Osk is ill]
    "Ill," says Calloway, pleased, and you watch him put it away to spend later.
* [Say that you don't know]
    The pleasure goes out of his face. For a moment he looks past you, toward the water, like a man who has heard a step on his stair.
    "Thirty years to the night," he says. "He'd not. Would he?" And then he shakes himself, and is Calloway again.
* [Say nothing and look up at the lamp]
    "Suit yourself," says Calloway. "He never says anything either. I suppose they teach it."
- The Market lamp stands in the middle of the square on an iron stalk, nine feet up. Even from here you can see that something is wrong with it: one pane is gone, and the fog is going in and out of the gap like breath.
-> market_lamp

=== market_lamp
* {not calloway} [Ask Calloway for oil first]
    -> calloway
* [Climb and patch the pane # dc:11 # stat:hands]
    -> market_climb
* [Light it as it is and hope]
    You reach up and touch the flame to the wick, and it catches, and ducks, and catches. You stand in the square willing it, for longer than you can spare. It lives. It burns low and sideways with its collar up, like a man in a doorway, and you do not know how long it will want to.
    ~ delay(2)
    -> market_burning

=== market_climb
{ test(hands, 11):
    You go up the stalk with the slate from Calloway's own price board between your teeth, and wedge it in the empty frame, MACKEREL TUPPENCE facing the sea. The flame takes the wick and stands up straight. Below you Calloway opens his mouth, reads his price list glowing over the square, and for once in his life decides not to mention the cost. # rolled:{rolled}
- else:
    The iron is greased with wet. You are a yard from the top when your boot goes, and you come down the stalk faster than you went up it. Nothing breaks but the seal on your lantern, and you hear a measure of oil go ticking away between the cobbles before you get a thumb on it. # rolled:{rolled}
    You light the lamp the slow way after that, from Calloway's ladder, with Calloway holding it and breathing through his nose.
    ~ spend_oil()
    ~ delay(1)
}
-> market_burning

=== market_burning
~ lit = lit + 1
~ spend_oil()
The square comes up out of nothing: the well, the weigh-house, the stone dog that children ride on. One lamp. Somewhere out past the roofs the wind changes its mind about something.
{ oil < 1: The lantern is terribly light in your hand. You tilt it and hear nothing move. }
* {not calloway} [Ask Calloway for oil]
    -> calloway
* [Go back to Pump Corner]
    -> crossroads

=== calloway
Calloway's shop is one room and a curtain. He draws off two measures without being asked, sets the can on the counter, and keeps his hand on it.
"Two shillings," he says. "Night rate."
You have never in your life had two shillings. He knows that. He knows what time it is, too, and what is due, and you see him understand that he has gone too far and see him decide to stay there.
* [Smell the can # dc:12 # stat:wits]
    { test(wits, 12):
        You put your nose to it, the way that Osk does with the first barrel of the winter. Oil floats. You tip the can, only a very little, and a bead of clean water rolls out from underneath and sits on the counter between you, shining like an eye. # rolled:{rolled}
        Neither of you says anything. Calloway goes behind the curtain and comes back with a different can, and his hand is not on this one.
        ~ oil = oil + 2
    - else:
        It smells of oil. Everything here smells of oil: the curtain, the counter, the man. You cannot find the thing that is bothering you, and he takes your silence for poverty, which it also is, and pours half back before he lets you have the rest on the town's account. # rolled:{rolled}
        ~ oil = oil + 1
        ~ watered = true
    }
* [Tell him whose names will be read out # dc:13 # stat:nerve]
    { test(nerve, 13):
        "There's sixty on the Perpetua," you say. "If she strikes, the harbour court will read out every name, and then it will ask for mine, and I'll tell it where I was standing, and at what hour, and what I was told the oil would cost." # rolled:{rolled}
        It is the longest thing that you have ever said to him. He takes his hand off the can as though it had become hot.
        ~ oil = oil + 2
    - else:
        You mean it to come out cold. It comes out high and fast, and your voice goes on the word names. Calloway is not a monster; he looks, if anything, embarrassed for you. But he puts the cork back in the can. "Go home, lamp-child," he says. "Send me the old man." # rolled:{rolled}
        ~ delay(1)
    }
* [Leave it. There are three measures for three lamps]
    You leave the can where it is. "It'll be half a crown by midnight," Calloway calls after you, but he sounds less sure of the price than he was.
- -> after_calloway

=== after_calloway
{ lit == 0 || not market_burning: -> market_lamp }
The fog closes behind you like his curtain.
-> crossroads

=== stair_foot
~ place = "The Bell Stair"
The Bell Stair is ninety-one steps cut in the cliff, with the lamp at the top of them, and above the lamp the bell. Nobody rings it now. It has been the custom since the Marchpane: the bell rang for her all that night, and no one has liked the sound of it since.
There is somebody sitting on the fourth step with a coil of rope across her knees. Ines, the ferry pilot's daughter, who is sixteen, and can splice anything, and has not to your knowledge ever been seen to sit.
"My father has her wheel tonight," she says. She does not say good evening. "I've been counting. {lit == 1:I make it one|I make it none}. There should be three by now."
* [Tell her the truth: Osk is gone]
    You tell her. The basket, the hook, the coat. She listens the way she splices, all the way to the end of the strand.
    { has_letter: You tell her about the letter, too. You had not known that you would. When you get to the eleven men she shuts her eyes, and you remember that everyone in Harrow has a name on that wall, and that hers was a grandfather. }
    "Then it's you," she says. And then, which you did not expect, "Good. You'd not have told me so if you meant to make a mess of it."
    ~ ines_trusts = true
* [Tell her that Osk sent you ahead]
    "Osk sent me on ahead."
    She looks at the lantern, and at your hands on the lantern, and at the dark behind you where there is no Osk. "Did he," says Ines. It is not a question, and it closes a door.
* [Ask for her rope]
    "What would you do with it?" she says, and you tell her: round the waist, round the rail, so that the lantern has two hands for the top of the Stair, where the wind is. She thinks about it. She ties the knot herself, and tests it by hauling you off your feet.
    ~ ines_trusts = true
    ~ hands = hands + 1
- -> stair_climb

=== stair_climb
Ninety-one steps. At the thirtieth the fog is below you, and it is worse to see it than to be in it: it lies over the whole harbour, flat and pale as milk in a pan, and it is coming up the Stair behind you one step at a time.
At the sixtieth the wind finds you.
* [Shield the flame with your body # dc:12 # stat:nerve]
    { test(nerve, 12):
        You turn your back on the drop, which is the hard part, and fold yourself around the light, and go up the last thirty steps backwards and by feel, with the whole sky leaning on your shoulders. The flame does not so much as nod. # rolled:{rolled}
    - else:
        -> blown_out
    }
* [Read the gusts and go between them # dc:12 # stat:wits]
    { test(wits, 12):
        It comes in threes. Two that push and one that pulls. You crouch for the two and climb on the third, and by the eightieth step you are almost enjoying it, in the way that a person may enjoy being very frightened and quite right. # rolled:{rolled}
    - else:
        -> blown_out
    }
* [Crawl, and take as long as it takes]
    You put the lantern ahead of you, and follow it, and put it ahead of you again. It is undignified, and it is slow, and it cannot really fail. When you can bear to look back the fog has come up thirty steps behind you and stopped to wait.
    ~ delay(2)
- -> stair_lamp

=== blown_out
The wind does not blow at the flame. It takes it, neatly, between finger and thumb. # rolled:{rolled}
You had not known how much of what you could see was only that. You stand on the cliff with a warm dead lantern, and the dark stands very close, and out in it, unhurried, a man's voice says your name. It says it kindly. It gets it very nearly right.
~ flame = false
~ delay(1)
* [Strike Osk's tinder until it takes]
    You have struck ten thousand sparks in the wickhouse, for practice, bored. You strike these with your eyes shut so as not to know how many it is. When you smell hot wick you open them. A measure of oil has gone over your sleeves, and you have skinned two knuckles, and there is light.
    ~ spend_oil()
* {ines_trusts} [Shout down for Ines]
    You do not need to shout twice. She comes up the Stair two at a time with her own hand-lamp inside her coat, lit from the kitchen fire of a house that has somebody at sea, and she gives you the flame and does not say one word about it. She stands a while on the weather side of you, getting her breath, and does not say a word about that either.
- ~ flame = true
-> stair_lamp

=== stair_lamp
~ place = "The top of the Stair"
~ lit = lit + 1
~ spend_oil()
The Stair lamp lights as it always has, with a small cough, like somebody about to make a speech. It throws a long yellow plank of light out over the milk. At the far end of the plank, for as long as you might hold a breath, there is a ship.
She is not the Perpetua. She has masts.
* [Look harder]
    There are men along her rail. They are not doing anything. They are standing as people stand on a quay when the boat is late, and every one of them has his face turned toward the one place on the shore where there is no lamp yet.
    One raises a hand. It is not a threat. You find that you have half raised yours.
* [Look away]
    You look at the wick, and trim it, which it does not need. When you have run out of things to do to it there is only fog, and a yellow plank going out over it to nowhere.
- -> bell

=== bell
Over your head hangs the bell. Its rope was cut down thirty years ago, and the stub of it moves a little, in and out of the light.
* (ines_stays) {ines_trusts} [Ask Ines to stay with the bell]
    "If it goes wrong at the Quay," you say, "she could still come in by ear."
    Ines looks at the stub of rope and then at the coil on her arm, and you can see her hands working out the splice. "Nobody's rung it since," she says. "They'll be at their windows cursing us." She appears to find this no objection. "Go on. If I see three lights I'll be quiet. If I don't I'll wake the dead."
    Neither of you laughs as much as that deserves.
    -> crossroads
* [Leave it hanging and go down]
    You go down with one hand on the rail. Behind you the wind gets a fingertip to the bell, and it makes a sound too low to be called ringing. It is more like somebody clearing a throat in an empty house.
    -> crossroads

=== chapel
~ place = "The seamen's chapel"
The door has not been locked in your lifetime. Inside there is a smell of wax and wet wool, and a wall of names, and one candle which is always lit and which you have never before thought to wonder about. Someone has to come in and do that. Someone has come in and done it for thirty years.
The Marchpane has a slate to herself. Eleven names.
* [Read them aloud]
    You read them aloud, because it seems the least a person could do. Abel Roe. Thomas Tarrant. Two Fennimores, a father and a son. You give each the same weight and leave a little space after each one. By the seventh you have the idea that the space is being used.
    At the eleventh you stop, and somewhere outside, close against the wall, eleven men let out a breath.
    ~ knows_names = true
    ~ nerve = nerve + 1
* [Fill your lantern from the chapel's can # dc:10 # stat:wits]
    It is not stealing, exactly. You are nearly sure that it is not stealing.
    { test(wits, 10):
        Behind the font, where anyone else would keep it, is a gallon can with a paper label: FOR THE CANDLE, AND FOR THE POLE IN NEED. OSK. He has thought of you, or of someone in your place, on some quiet evening years ago. You take one measure and put the can back with its label to the front. # rolled:{rolled}
        ~ oil = oil + 1
    - else:
        You look in the vestry and the cupboard, and under a great many hassocks, and the candle watches you do it. When you give up you have cobwebs to the elbow and the fog has come in under the door as far as the second pew. # rolled:{rolled}
        ~ delay(1)
    }
* [Sit down for one minute]
    You sit down, with your back against the warm stone behind the candle, for one minute.
    You wake with your heart going like a pump handle. It has not been long. It may not have been long. But you know now exactly how it was done, how easily, by a boy who was not wicked and not even especially tired.
    ~ delay(2)
    ~ wits = wits + 1
- -> crossroads
