// Rope Lane, the breakwater and the Quay Light.

=== rope_lane
~ place = "Rope Lane"
Rope Lane is a quarter of a mile long and one rope wide, with a roof and no walls, where they used to walk the cables out. You have always run it. Tonight you walk, because something is walking on the other side of the posts, keeping level, and you do not want to learn that it can also run.
{ watered: Halfway along, the lantern spits. You smell it now, of course: not oil but oil and water, and the flame stands in it up to the knees. You shake the worst of it out, and with the worst goes half of the rest. }
{ watered:
    ~ spend_oil()
}
"It's only the one we'd want left," says the voice, conversationally, from between two posts. { lit == 2: "You've lit such a pretty pair." | "You can light the rest till you're blue." }
* [Ask who is there]
    "You know," says the voice. "You've polished our plate on the slate every Martinmas. Tarrant, mate of the Marchpane. There's ten more. They're shyer."
* {knows_names} [Say the eleven names back to it]
    You say them, in the order of the slate, in time with your steps. Abel Roe. Thomas Tarrant. With each one the thing beyond the posts falls a little out of step, until it is not walking any more but standing, and you have to stop and turn to hear it.
    "Nobody's said that in one go," says Tarrant, "in ever such a time." It takes him a moment to go on. "We'd thought we were the weather, some of us. It's easily done."
* [Walk faster]
    You walk faster. It is no trouble to him at all.
- -> fog_speaks

=== fog_speaks
"Here's how it is," says Tarrant. "We're to come in by the Quay Light. Those were the orders and they've never been changed, only it was dark when we came, and we've been standing off ever since. We can't come in by it lit, neither. It's not the light that we were lost by, if you follow. Somebody has to leave it out again, just until we're past. Then we'd be in, and done with."
"There's a ferry," you say.
"Aye," says the drowned man. "We've nothing against the ferry."
He says it simply, and you believe him, and that is a good deal worse than if you had not.
* [Promise that they shall come in]
    "I'll see you in," you say. "I don't know how yet."
    ~ gave_word = true
    There is a sound all down the Lane, from post to post to post, like a long rope being let go. "That's more than we ever had off the other one," says Tarrant.
* [Refuse, to his face # dc:13 # stat:nerve]
    { test(nerve, 13):
        "No," you say. "Sixty people. I'm sorry. No." You hold up the lantern so that he can see who is saying it. # rolled:{rolled}
        He is quiet. You have the odd impression of a cap being turned round and round in a pair of hands. "I'd a thought less of you," says Tarrant, "if I'm honest." And there is nobody beyond the posts.
    - else:
        "No," you say, or your mouth makes the shape of it. What comes out is a sort of cough. The lantern shakes, and the shaking makes the shadows of the posts get up and walk about. # rolled:{rolled}
        "You've time to think on," says Tarrant, with dreadful gentleness, and the fog comes in under the roof.
        ~ delay(1)
    }
* [Ask where Osk is]
    "Him?" says Tarrant. "He's out along the breakwater. He came down without a light to tell us no, and now he can't find his way to either end of it." A pause. "We didn't do that. He walked out on his own two feet. We've been keeping him company."
- -> breakwater_gate

=== breakwater_gate
~ place = "The end of Rope Lane"
The Lane lets you out on to stone. To the right are the forty yards of quay, and the Light at the end of it, an iron cage as big as a bed on a pillar as thick as an oak, stone dark. To the left the breakwater goes off into the white.
Out beyond both of them, low and long, a horn. The Perpetua, asking.
* [Go left, and look for Osk]
    -> breakwater
* [Go right, to the Light]
    There is not time for both. There may not be time for one. You call his name twice down the breakwater, as loudly as you can, and go the other way before you can hear whether he answers.
    -> quay_steps

=== breakwater
~ place = "The breakwater"
~ delay(1)
The breakwater is as wide as a cart and has no rail, because the people who built it did not think that anybody would be so stupid. The sea goes up and down on both sides with a noise of furniture. You hold the lantern low and follow the middle stones.
The wave, when it comes, comes without any noise whatever.
* [Throw yourself flat over the lantern # dc:12 # stat:nerve]
    { test(nerve, 12):
        You go down on it like a hen on an egg. The water walks over you from heels to hair, and takes its time, and goes. You are wetter than you knew that a person could be. Underneath you, cross and small and yellow, there is light. # rolled:{rolled}
    - else:
        -> drowned_flame
    }
* {load ? pole} [Hook the pole in a mooring ring # dc:10 # stat:hands]
    { test(hands, 10):
        You have it through the ring and your elbow through the crook of it before you have understood why. The water takes your feet away and shows them to you, and then, regretfully, gives them back. The lantern swings on its bail over your head, dry as a bone. # rolled:{rolled}
    - else:
        -> drowned_flame
    }
* {not (load ? pole)} [Run for the next bollard # dc:12 # stat:hands]
    { test(hands, 12):
        You get both arms around it with the lantern hugged in the middle, cheek to the iron, like somebody dancing with an uncle. The water takes your feet away and shows them to you, and then, regretfully, gives them back. # rolled:{rolled}
    - else:
        -> drowned_flame
    }
- -> osk_on_the_stones

=== drowned_flame
The sea puts out your lantern as one would put out a candle in a child's room: it has no malice in it, and no doubt. # rolled:{rolled}
~ flame = false
When you have finished coughing you are on your hands and knees in the dark, on a wall, in the water, and you have no fire; and the only fire in Harrow is behind you in lamps that you lit yourself.
-> osk_on_the_stones

=== osk_on_the_stones
{ load ? oilskin: "That's my oilskin," says the dark, "and it wants hanging up." | "It's my oilskin that you ought to be wearing," says the dark, "in this." }
~ osk_found = true
He is sitting with his back against a bollard like a man waiting for a coach. He is grey as the stone is grey. You get hold of his sleeve, and there is an arm in it, and the arm is cold, but it is cold like a person.
{ has_letter: "You read it," says Osk, looking at your face. "Well. I left it out." | "There's a letter on my bed," says Osk. "You'll not have read it. You've manners. It says that the Marchpane was me. I slept. That's all that it says, really." }
The horn goes again, much nearer, and he flinches as if it had been thrown at him.
"I came down to tell them no," he says. "And then I got here, and I found that I couldn't think what I'd say after that."
* [Tell him that you need him on his feet]
    "You can think of it later," you tell him. "I can't reach the top cage by myself. I never could. You always did it."
    It is not true. You have been able to reach it since the spring. He knows it, too. But he looks at you for a while, and gets one boot under himself, and then the other.
* [Tell him that it was thirty years ago]
    "It was thirty years ago."
    "It was tonight," says Osk. "That's the trouble with it. It's been tonight ever since." But he gives you his hand, to be pulled up by.
* [Say nothing, and sit down beside him for a breath]
    You sit. There is no time to, and you sit. His shoulder comes against yours by degrees. On the third breath he says in nearly his own voice, "You've let the wick burn crooked," and gets up to see to it.
- { not flame:
    He takes the dead lantern out of your hand. From inside his hat, dry, wrapped in a twist of oilcloth, he produces four matches; and you, who have been rapped across the knuckles for carrying matches, say nothing at all. The second one takes.
    ~ flame = true
}
-> quay_steps

=== quay_steps
~ place = "The Quay"
{ osk_found: You come along the quay with his hand on your shoulder, as you used to walk behind the ladder, only the other way about. }
The Quay Light. Close to, it is less a lamp than a small iron house. There are eleven rungs up to the cage, and you have never until now wondered who decided on the number.
{ lit >= 2: Look back and there they hang, Market below and Stair above, with the dark between them waiting for the third. } { lit == 1: Look back and there is one light, by itself, which is worse than none for a pilot: a thing to steer by and nothing to line it up with. }
The horn. You can hear her engines under it now. You can hear somebody on her deck, a child, laughing at something.
And on the other side, on the still water inside the mole where there has been nothing all night, masts.
{ fog > 4: It is late. The fog is so thick about the pillar that it has a grain, like wood. }
-> the_choice

=== the_choice
* [Climb, and light it # dc:{climb()} # stat:hands]
    -> light_it
* {osk_found} [Climb, with Osk to steady the ladder]
    "Go on," says Osk, and sets his back against the pillar, and makes a stirrup of his hands as if you were still nine years old. "I'll be awake," he says. "You have my word on it."
    -> lit_quay
* {bell.ines_stays} [Leave it dark, and trust Ines to the bell]
    -> leave_dark
* {gave_word || knows_names} [Hold the flame low, for the Marchpane only # dc:14 # stat:wits]
    -> low_flame
* [Sit down, for one minute, with your back to the pillar]
    It is not tiredness. You want to be clear on that. It is only that you have carried the light such a long way, and the stone is so very nearly warm.
    -> ending_dark

=== light_it
{ oil < 1:
    You get to the top before you remember how light the lantern was. There is a film of oil left in it, no more. You tear the lining out of your coat, and wipe the reservoir dry with it, and lay that on the wick: it will burn bright, or it will not burn.
    ~ delay(1)
}
{ test(hands, 10 + fog):
    Eleven rungs with your teeth in the lantern bail. You think of nothing but rungs. The cage door sticks, and you hit it with your forehead, there being nothing else free. And the wick, that great flat wick as broad as your hand, takes the flame along its edge from left to right like a page being read. # rolled:{rolled}
    -> lit_quay
- else:
    Eleven rungs. At the ninth your hand closes on wet iron and keeps on closing. The lantern goes first; you watch it turn over, once, politely, throwing its light on the pillar and the water and the pillar. Then you are on your back on the quay with no breath in you, and it is dark. # rolled:{rolled}
    -> last_chance
}

=== last_chance
The engines are very loud.
* {osk_found} [Let Osk go up]
    Something goes over you in the dark: a boot, a bad knee, a muttered word. He has not climbed that ladder in two winters. He goes up it now like a boy of nineteen who has woken with a start, and this time, this time, he is not too late. You hear the match.
    -> lit_quay
* {bell.ines_stays} [Shout for the bell]
    You have no light, and nothing to make one with. You have a voice. You fill yourself up with fog and turn to the cliff and put all of it into the one word.
    -> leave_dark
* [Find the lantern. Find anything]
    You go over the stones on your hands, patting, like someone who has dropped a ring. You find the bail. You find a good deal of broken glass. The one thing that you do not find is time.
    -> ending_dark

=== low_flame
You climb only to the sixth rung. You hold the lantern out at the length of your arm, low over the inside water, shaded from the sea by your own body: lit, to anyone coming in from the one side, and dark to anyone from the other.
{ test(wits, 14):
    It is a thing that no lamp can do. It takes a person. You stand there being half of a lighthouse, with your arm on fire from the weight, and on the still water inside the mole the masts begin without any wind to move. # rolled:{rolled}
    They pass beneath you close enough to touch. Eleven caps come off. You count them, aloud, by name if you have the names, and by number if you have not; and as the last of them goes by your feet you swing yourself up the other five rungs with the arm that still works and put the flame to the wick.
    -> ending_home
- else:
    But you are tired, and the arm shakes, and you have the angle wrong by the width of a hand. The Perpetua's horn says suddenly, sharply, that she has seen something. What she has seen is a low light in the wrong place, and she is turning toward it. # rolled:{rolled}
    You have perhaps a minute to make it the right place.
    -> scramble
}

=== scramble
* [Five rungs, now # dc:9 # stat:nerve]
    { test(nerve, 9):
        You do not climb them so much as refuse to be anywhere else. # rolled:{rolled}
        -> lit_quay
    - else:
        You climb them. You would swear to any court that you climbed them all. But the flame goes past your ear on the fourth, like a moth that has seen something better. # rolled:{rolled}
        -> last_chance
    }
* {bell.ines_stays} [Put out the lantern and shout for the bell]
    A wrong light is worse than none. You know it as surely as if somebody had rapped it into your knuckles, and somebody has. You blow out the flame that you have carried all night, and turn to the cliff, and shout.
    -> leave_dark

=== leave_dark
{ not last_chance && not scramble: You set the lantern down on the stones and put your coat over it. It is the hardest thing that you have done tonight. Your hands keep trying to go back. }
Dark. The whole harbour breathes in.
And from the top of the Stair, cracked and enormous and thirty years out of practice, the bell.
It goes over the roofs like something thrown. Windows bang up all along the hill. Again; again; Ines has found the swing of it; and out beyond the Teeth you hear the Perpetua's engines falter, and think, and change their note. Her father is no fool. He has steered by worse than a bell, and he knows who taught that hand its knots.
-> ending_home
